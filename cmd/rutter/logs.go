package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/node/pod"
)

func newLogsCommand() *cobra.Command {
	var node onThisNode
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs POD",
		Short: "Show the output of a pod that was started with -d",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("name one pod: %s", cmd.UseLine())}
			}
			e, err := node.find(args[0])
			if err != nil {
				return err
			}
			return pod.Logs(cmd.Context(), cmd.OutOrStdout(), e, follow)
		},
	}
	node.register(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the pod ends")
	return cmd
}

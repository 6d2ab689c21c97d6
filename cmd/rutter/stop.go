package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/node/pod"
)

func newStopCommand() *cobra.Command {
	var (
		node       onThisNode
		kubeconfig string
		grace      time.Duration
	)
	cmd := &cobra.Command{
		Use:     "stop POD...",
		Aliases: []string{"rm"},
		Short:   "End pods of this node and take them out of the API",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("name the pods: %s", cmd.UseLine())}
			}
			if grace < 0 {
				return usageError{fmt.Errorf("--time %s is negative", grace)}
			}
			results := make([]error, len(args))
			var all sync.WaitGroup
			for i, arg := range args {
				all.Go(func() {
					e, err := node.find(arg)
					if err == nil {
						err = pod.Stop(cmd.Context(), node.client(kubeconfig), node.runDir, e, grace)
					}
					results[i] = err
				})
			}
			all.Wait()
			return errors.Join(results...)
		},
	}
	node.register(cmd)
	cmd.Flags().DurationVar(&grace, "time", pod.DefaultGrace, "time for the process to end between TERM and KILL")
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig of the API server (default $KUBECONFIG, else agent.kubeconfig in --run-dir)")
	return cmd
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/node/demo"
)

func newDemoServerCommand() *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:    "demo-server",
		Short:  "Answer HTTP with the pod's name and address",
		Hidden: true,
		Args:   noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Serve(cmd.Context(), listen, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":80", "address to listen on")
	return cmd
}

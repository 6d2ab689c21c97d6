package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/check"
	"github.com/rutter-project/rutter/internal/dns/plugin/order"
)

func newCheckCommand() *cobra.Command {
	var output, port string
	cmd := &cobra.Command{
		Use:   "check [COREFILE]",
		Short: "Validate a Corefile and explain what it means, without serving it",
		Long: `Validate a Corefile and explain it: which zones each server block serves, where
it listens, and which plugins a query meets in which order. Nothing is opened or
started. The exit code is 1 if the Corefile is not valid.

Without a name the file Corefile in the working directory is read; - reads
standard input.`,
		Example: `  rutter check /etc/coredns/Corefile
  rutter check -o json Corefile | jq .errors
  kubectl -n kube-system get cm coredns -o jsonpath={.data.Corefile} | rutter check -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return usageError{fmt.Errorf("--output %q: want text or json", output)}
			}
			name := "Corefile"
			if len(args) == 1 {
				name = args[0]
			}
			var src []byte
			var err error
			if name == "-" {
				name = "stdin"
				src, err = io.ReadAll(cmd.InOrStdin())
			} else {
				src, err = os.ReadFile(name)
			}
			if err != nil {
				return fmt.Errorf("reading the Corefile: %w", err)
			}
			opts := corefile.OS()
			opts.Port = port
			report := check.Check(name, src, opts, order.List(nil))
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(report)
			} else {
				for _, e := range report.Errors {
					fmt.Fprintln(cmd.ErrOrStderr(), e.Text)
				}
				err = report.Write(cmd.OutOrStdout())
			}
			if err == nil && !report.Valid {
				return exitError{exitFailed}
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "`format`: text or json")
	cmd.Flags().StringVar(&port, "dns.port", "53", "`port` of server blocks that name none")
	return cmd
}

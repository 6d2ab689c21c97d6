package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

func newPsCommand() *cobra.Command {
	var runDir, output string
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the pods that `rutter run` runs on this node",
		Long: `Lists the pods that ` + "`rutter run`" + ` runs on this node, in all namespaces, and those
that have ended and were not stopped yet. It asks the node, not the API.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			pods, err := sandbox.List(runDir)
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(append([]sandbox.Entry{}, pods...))
			case "":
			default:
				return usageError{fmt.Errorf("-o %q: want json, or nothing for a table", output)}
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "NAMESPACE\tNAME\tREADY\tSTATUS\tIP\tAGE\tCOMMAND")
			for _, p := range pods {
				ready := "0/1"
				if p.Live && p.Ready {
					ready = "1/1"
				}
				var ips []string
				for _, a := range p.Addrs {
					ips = append(ips, a.String())
				}
				if p.Ended() || len(ips) == 0 {
					ips = []string{"-"}
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Namespace, p.Name, ready, pod.Status(p), strings.Join(ips, ","),
					duration.HumanDuration(time.Since(p.Created)), shorten(strings.Join(p.Command, " ")))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", agent.DefaultRunDir, "directory for sockets, locks and the state of pods")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for a table")
	return cmd
}

// shorten makes one short line of a command, which may hold anything.
func shorten(s string) string {
	const enough = 60
	runes := []rune(strings.Join(strings.Fields(s), " "))
	for i, r := range runes {
		if !unicode.IsPrint(r) {
			runes[i] = '�'
		}
	}
	if len(runes) > enough {
		runes = append(runes[:enough-1], '…')
	}
	return string(runes)
}

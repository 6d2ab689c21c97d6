package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/agent"
)

func newStatusCommand() *cobra.Command {
	runDir, output, services := agent.DefaultRunDir, "", false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node's agent is doing",
		Long: `Asks the agent on this host how it is doing: its view of the API, what it knows,
what it has programmed and published, and what is not as it should be.

With --services it shows the connections through this node since the agent
started, by service and endpoint, the busiest first; with bytes if the agent
runs with --counters=bytes.

The exit code is 0 when all is well, 1 when the agent does not answer or
something is degraded.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return usageError{fmt.Errorf("-o %q: want json, or nothing for text", output)}
			}
			if services {
				return showServices(cmd, runDir, output)
			}
			s, err := agent.FetchStatus(cmd.Context(), filepath.Join(runDir, agent.Socket))
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(s)
			} else {
				err = printStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && len(s.Degraded) > 0 {
				return exitError{exitFailed}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", runDir, "run directory of the agent")
	cmd.Flags().BoolVar(&services, "services", false, "show the connections to services instead")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for text")
	return cmd
}

// shownPartial is how many services are shown that are programmed in part, and
// how many parts of each.
const shownPartial = 5

func printStatus(out io.Writer, s agent.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	state := "ready"
	switch {
	case !s.Ready:
		state = "starting: waiting for " + s.Waiting
	case len(s.Degraded) > 0:
		state = "degraded"
	}
	fmt.Fprintf(w, "node\t%s\t%s, agent %s, up %s\n", s.Node, state, s.Version, age(s.Started))
	for _, d := range s.Degraded {
		fmt.Fprintf(w, "\t!\t%s\n", d)
	}
	for _, a := range s.API {
		text := "watching, last event " + ago(a.LastEvent)
		if !a.Connected {
			text = "not connected for " + age(a.Since)
			if a.Error != "" {
				text += ": " + a.Error
			}
		}
		fmt.Fprintf(w, "api\t%s\t%s\n", a.Kind, text)
	}
	c := s.Catalog
	fmt.Fprintf(w, "catalog\t%d services\t%d endpoints in %d slices, %d namespaces, %d nodes, %d pods of this node\n", c.Services, c.Endpoints, c.Slices, c.Namespaces, c.Nodes, c.Pods)
	p := s.Proxy
	fmt.Fprintf(w, "proxy\t%d services\t%d ports and %d endpoints in %s, last change confirmed %s\n", p.Services, p.Ports, p.Endpoints, p.Mode, ago(p.LastApply))
	for i, part := range p.Partial {
		if i == shownPartial {
			fmt.Fprintf(w, "\t\tand %d more services that are programmed in part (-o json has all)\n", len(p.Partial)-i)
			break
		}
		for _, skip := range part.Skipped[:min(len(part.Skipped), shownPartial)] {
			fmt.Fprintf(w, "\t%s\twithout %s: %s\n", part.Service, skip.What, strings.ReplaceAll(string(skip.Reason), "-", " "))
		}
	}
	dns := "not serving"
	if len(s.DNS.Listening) > 0 {
		dns = "on " + strings.Join(s.DNS.Listening, ", ")
	}
	fmt.Fprintf(w, "dns\t\t%s\n", dns)
	return w.Flush()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return age(t) + " ago"
}

// age words the time since t, as kubectl does.
func age(t time.Time) string {
	switch d := time.Since(t); {
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

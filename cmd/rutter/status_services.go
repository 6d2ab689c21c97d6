package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/proxy"
)

// Of many services and endpoints the busiest are shown; JSON has all.
const (
	shownServices  = 20
	shownEndpoints = 10
)

// showServices prints what went to each service.
func showServices(cmd *cobra.Command, runDir, output string) error {
	list, err := agent.FetchTraffic(cmd.Context(), filepath.Join(runDir, agent.Socket))
	if err != nil {
		return err
	}
	if output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	return printServices(cmd.OutOrStdout(), list)
}

func printServices(out io.Writer, list []proxy.Traffic) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "No connection went to a service through this node since the agent started.")
		return err
	}
	bytes := false
	for _, t := range list {
		bytes = bytes || t.Packets > 0
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(service, endpoint string, connections, packets, sent uint64) {
		fmt.Fprintf(w, "%s\t%s\t%d", service, endpoint, connections)
		if bytes {
			fmt.Fprintf(w, "\t%d\t%s", packets, size(sent))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprint(w, "SERVICE\tENDPOINT\tCONNECTIONS")
	if bytes {
		fmt.Fprint(w, "\tPACKETS\tBYTES")
	}
	fmt.Fprintln(w)
	for _, t := range list[:min(len(list), shownServices)] {
		row(t.Service.String(), "", t.Connections, t.Packets, t.Bytes)
		for _, e := range t.Endpoints[:min(len(t.Endpoints), shownEndpoints)] {
			row("", fmt.Sprintf("%s %s", e.Endpoint, e.Protocol), e.Connections, e.Packets, e.Bytes)
		}
		if more := len(t.Endpoints) - shownEndpoints; more > 0 {
			fmt.Fprintf(w, "\tand %d more\n", more)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := len(list) - shownServices; more > 0 {
		fmt.Fprintf(out, "and %d services with fewer connections (-o json has all)\n", more)
	}
	return nil
}

// size words a number of bytes.
func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, i := float64(n), 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1000
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

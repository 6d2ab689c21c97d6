package proxy

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// Rows of docs/compatibility.md, by their first cell.
const (
	staleUDP = "UDP and SCTP flows to what is gone"
	repair   = "tables that another program changes or removes"
	// Of mode ipvs.
	ipvsDrain  = "mode `ipvs`: connections of a deleted service, or front end"
	ipvsRouter = "mode `ipvs`: an external IP that is a router of the node"
	longNames  = "service and port names of up to 63 characters"

	relaySource = "mode `userspace`: the address that endpoints see"
	processGone = "mode `userspace`: when the process ends"
)

// TestDeviations holds the table against docs/compatibility.md: where Rutter is
// expected to differ, a row there says why; where no row is named, it is
// expected to do as kube-proxy does. What is seen is TestProxy's business.
func TestDeviations(t *testing.T) {
	listed := listedDeviations(t)
	used := make(map[string]bool)
	check := func(list []row) {
		for _, row := range list {
			for _, k := range kinds {
				if k.proxy != "rutter" {
					continue
				}
				peer, _ := row.expected(kind{proxy: "kube-proxy", mode: k.mode})
				own, deviation := row.expected(k)
				used[deviation] = true
				switch {
				case deviation == "" && own != peer:
					t.Errorf("%s: %s is expected to differ (%q, not %q), and no deviation is named", row, k, own, peer)
				case deviation != "" && own == peer:
					t.Errorf("%s: %s is expected to do as kube-proxy: %q is no deviation", row, k, deviation)
				case deviation != "" && !listed[deviation]:
					t.Errorf("%s: docs/compatibility.md has no row %q under Service proxy", row, deviation)
				}
			}
		}
	}
	for _, s := range slices.Concat(static, changes, odd) {
		check(rows(s.name, "", s.paths))
		for _, step := range s.steps {
			check(rows(s.name, step.what, step.paths))
		}
	}
	for _, v := range variants {
		check(rows(v.name, "", v.paths))
	}
	for _, d := range []string{staleUDP, repair, longNames, relaySource, processGone} {
		if !used[d] {
			t.Errorf("no row shows the deviation %q", d)
		}
	}
}

// TestRowsAreDistinct: a repeated row would hide one of the two.
func TestRowsAreDistinct(t *testing.T) {
	seen := make(map[string]bool)
	count := 0
	note := func(list []row) {
		for _, row := range list {
			if seen[row.String()] {
				t.Errorf("twice in the table: %s", row)
			}
			seen[row.String()] = true
			count++
		}
	}
	names := make(map[string]bool)
	for _, s := range slices.Concat(static, changes, odd) {
		if names[s.name] {
			t.Errorf("two scenarios are called %s", s.name)
		}
		names[s.name] = true
		note(rows(s.name, "", s.paths))
		for _, step := range s.steps {
			note(rows(s.name, step.what, step.paths))
		}
	}
	for _, v := range variants {
		note(rows(v.name, "", v.paths))
	}
	if count < 120 {
		t.Errorf("the table has %d rows", count)
	}
}

// listedDeviations are the first cells of the Service proxy table.
func listedDeviations(t *testing.T) map[string]bool {
	text, err := os.ReadFile("../../docs/compatibility.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Service proxy")
	if !ok {
		t.Fatal("docs/compatibility.md has no section Service proxy")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	listed := make(map[string]bool)
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		for _, cell := range cells[1:5] {
			if strings.TrimSpace(cell) == "" {
				t.Error(fmt.Errorf("docs/compatibility.md: an empty cell in: %s", line))
			}
		}
		listed[strings.TrimSpace(cells[1])] = true
	}
	return listed
}

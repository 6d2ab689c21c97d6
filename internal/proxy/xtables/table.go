package xtables

import (
	"strings"
)

// Table is what a table holds, in the text of iptables-save.
type Table struct {
	// Chains has the rules of each chain, in order, without "-A CHAIN ".
	Chains map[string][]string
}

// Parse reads the listing of one table. Lines that it does not know are left
// out.
func Parse(text string) Table {
	t := Table{Chains: make(map[string][]string, strings.Count(text, "\n:")+1)}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			if _, ok := t.Chains[name]; !ok && name != "" {
				t.Chains[name] = nil
			}
		case strings.HasPrefix(line, "-A "):
			name, rule, _ := strings.Cut(line[3:], " ")
			if name != "" {
				// Some matches list themselves with two blanks.
				if strings.Contains(rule, "nfacct-name  ") {
					rule = strings.ReplaceAll(rule, "nfacct-name  ", "nfacct-name ")
				}
				t.Chains[name] = append(t.Chains[name], rule)
			}
		}
	}
	return t
}

package check

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, text := range r.Warnings {
		fmt.Fprintf(t, "warning: %s\n", text)
	}
	switch n := len(r.Blocks); {
	case !r.Valid:
	case n == 0:
		fmt.Fprintf(t, "%s is valid, but has no server block: nothing would be served\n", r.File)
	default:
		fmt.Fprintf(t, "%s is valid: %s\nSHA512 %s\n", r.File, plural(n, "server block"), r.Hash)
		for _, b := range r.Blocks {
			b.write(t)
		}
	}
	return t.Flush()
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

func (b *Block) write(w io.Writer) {
	fmt.Fprintf(w, "\n%s:%d  %s\n", b.File, b.Line, strings.Join(b.Zones, " "))
	fmt.Fprintf(w, "  listens on %s\n", strings.Join(b.Listeners, ", "))
	if b.View != "" {
		fmt.Fprintf(w, "  for the queries of view %s\n", b.View)
	}
	if len(b.Chain) == 0 {
		fmt.Fprintf(w, "  no plugin answers: every query is refused\n")
	} else {
		fmt.Fprintf(w, "  queries pass, in this order (direct: passed on or answered without the chain of handlers):\n")
	}
	for _, p := range b.Chain {
		path := "chain"
		if p.Direct {
			path = "direct"
		}
		fmt.Fprintf(w, "    %s\t%s\t%s\t%s\n", p.Name, p.Effect, lines(p.Lines), path)
	}
	if len(b.Beside) > 0 {
		names := make([]string, len(b.Beside))
		for i, p := range b.Beside {
			names[i] = p.Name + " (" + lines(p.Lines) + ")"
		}
		fmt.Fprintf(w, "  beside them: %s\n", strings.Join(names, ", "))
	}
}

func lines(list []int) string {
	text := make([]string, len(list))
	for i, n := range list {
		text[i] = strconv.Itoa(n)
	}
	if len(list) == 1 {
		return "line " + text[0]
	}
	return "lines " + strings.Join(text, ", ")
}

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// report prints tables, aligned for a terminal or as Markdown.
type report struct {
	w        io.Writer
	markdown bool
}

// table is a heading and rows of cells; the first row names the columns.
type table struct {
	title string
	rows  [][]string
	notes []string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// machine prints what the figures depend on.
func (r *report) machine() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	fmt.Fprintf(r.w, "%s, Linux %s, %s, %d CPUs (%s), shared with the load generator; load average at start %s\n",
		time.Now().UTC().Format("2006-01-02 15:04 MST"), unix.ByteSliceToString(u.Release[:]), runtime.Version(),
		runtime.NumCPU(), cpuModel(), loadAverage())
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH
}

func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if len(f) == 0 {
		return "unknown"
	}
	return f[0]
}

// print writes one table. The first column is aligned left, the others right.
func (r *report) print(t *table) {
	width := make([]int, len(t.rows[0]))
	for _, row := range t.rows {
		for i, c := range row {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	if r.markdown {
		fmt.Fprintf(r.w, "\n### %s\n\n", t.title)
	} else {
		fmt.Fprintf(r.w, "\n%s\n", t.title)
	}
	for n, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i == 0 {
				c += pad
			} else {
				c = pad + c
			}
			if r.markdown {
				line.WriteString("| " + c + " ")
			} else {
				line.WriteString("  " + c)
			}
		}
		if r.markdown {
			line.WriteString("|")
		}
		fmt.Fprintln(r.w, strings.TrimRight(line.String(), " "))
		if r.markdown && n == 0 {
			for i := range row {
				if i == 0 {
					fmt.Fprint(r.w, "|---")
				} else {
					fmt.Fprint(r.w, "|--:")
				}
			}
			fmt.Fprintln(r.w, "|")
		}
	}
	for _, n := range t.notes {
		if r.markdown {
			fmt.Fprintf(r.w, "\n%s\n", n)
		} else {
			fmt.Fprintf(r.w, "  (%s)\n", n)
		}
	}
}

// median of the values; zero for none. The order of values is changed.
func median[T cmp.Ordered](values []T) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// percentile p (0 to 100) of sorted values.
func percentile[T any](sorted []T, p float64) T {
	i := int(p / 100 * float64(len(sorted)))
	return sorted[min(i, len(sorted)-1)]
}

// Cells of the tables.

func count(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func micros(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Microsecond)) }

func megabytes(n int64) string { return fmt.Sprintf("%.0f", float64(n)/1e6) }

// ratio of two figures, or nothing if there is no second one.
func ratio(a, b float64) string {
	if b == 0 {
		return ""
	}
	if r := a / b; r < 10 {
		return fmt.Sprintf("%.2f", r)
	}
	return count(a / b)
}

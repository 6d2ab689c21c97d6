package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sizedResults are the results in a cluster of one size.
type sizedResults struct {
	size    shape
	results []*proxyResult
}

// than is the result that r is compared with, or r itself.
func than(r *proxyResult, results []*proxyResult) *proxyResult {
	for _, other := range results {
		if other.name == r.than {
			return other
		}
	}
	return &proxyResult{}
}

// bounded is a cell for a time that may have been cut.
func (b *bench) bounded(over bool, text string) string {
	if over {
		return fmt.Sprintf("> %.0f s", b.patience.Seconds())
	}
	return text
}

func seconds(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", d.Seconds())
}

func millis(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond))
}

// faster is how much less time own is than another's, which may have been cut.
func (b *bench) faster(other, own time.Duration, otherOver, over bool) string {
	switch {
	case over, own == 0:
		return ""
	case otherOver:
		return "> " + ratio(float64(b.patience), float64(own))
	case other == 0:
		return ""
	}
	return ratio(float64(other), float64(own))
}

func (b *bench) printProxies(size shape, results []*proxyResult) {
	t := &table{title: "Service proxy, first programming, " + size.String()}
	t.add("", "start → connections s", "× faster", "of which sync s", "× faster", "CPU s", "× less", "RSS MB at the end")
	for _, r := range results {
		if r.name == directName {
			continue
		}
		o := than(r, results)
		if r.first == 0 && !r.over {
			t.notes = append(t.notes, fmt.Sprintf("%s: %v", r.name, r.err))
			continue
		}
		t.add(r.name, b.bounded(r.over, seconds(r.first)), b.faster(o.first, r.first, o.over, r.over),
			seconds(r.synced), b.faster(o.synced, r.synced, false, r.over),
			seconds(r.firstCPU), b.faster(o.firstCPU, r.firstCPU, false, r.over), megabytes(r.memory.Resident))
	}
	t.notes = append(t.notes,
		"from the start of the process until connections to 500 services, spread over all, were made; listing from the API is included, sync is the rest by the proxy's own metric",
		"× is against kube-proxy in the same mode, or in nftables mode where it has none; CPU includes the programs that a proxy starts")
	b.out.print(t)

	t = &table{title: "Service proxy, one change, " + size.String()}
	t.add("", "endpoint: write → connection ms", "× faster", "event → connection ms", "max ms", "sync ms", "CPU ms", "× less", "service added: write → connection ms", "× faster")
	for _, r := range results {
		if len(r.changed.fromWrite) == 0 && !r.changed.over {
			continue
		}
		o := than(r, results)
		write, event := median(r.changed.fromWrite), median(r.changed.fromEvent)
		cpu, added := median(r.changed.cpu), median(r.added.fromWrite)
		fromEvent, longest := "", ""
		if len(r.changed.fromEvent) > 0 {
			// 0.00: the connection came before this benchmark had the event.
			fromEvent = fmt.Sprintf("%.2f", event.Seconds()*1000)
			longest = fmt.Sprintf("%.2f", slices.Max(r.changed.fromEvent).Seconds()*1000)
		}
		t.add(r.name, b.bounded(r.changed.over, millis(write)), b.faster(median(o.changed.fromWrite), write, o.changed.over, r.changed.over),
			fromEvent, longest, millis(r.partial), millis(cpu), b.faster(median(o.changed.cpu), cpu, false, false),
			b.bounded(r.added.over, millis(added)), b.faster(median(o.added.fromWrite), added, o.added.over, r.added.over))
	}
	t.notes = []string{
		"medians, from the API call, or from the watch event that this benchmark's own watch gets, until a connection arrives at the new endpoint",
		"sync is the mean by the proxy's own metric; CPU until the proxy is idle again"}
	b.out.print(t)

	t = &table{title: "Service proxy, many changes, " + size.String()}
	t.add("", "1,000 services added and removed: s", "after the last write s", "CPU s", "× less", "1,000 pods rolled: s", "after the last write s", "CPU s", "× less")
	for _, r := range results {
		if r.churn == (mass{}) {
			continue
		}
		o := than(r, results)
		t.add(r.name,
			b.bounded(r.churn.over, seconds(r.churn.took)), seconds(r.churn.after), seconds(r.churn.cpu), b.faster(o.churn.cpu, r.churn.cpu, false, r.churn.over),
			b.bounded(r.roll.over, seconds(r.roll.took)), seconds(r.roll.after), seconds(r.roll.cpu), b.faster(o.roll.cpu, r.roll.cpu, false, r.roll.over))
	}
	t.notes = []string{"until a change that was written last is seen by a connection; most of the time is the API server's; a pod is rolled with two writes of its slice"}
	if b.short {
		t.notes = append(t.notes, "-short: a tenth of that")
	}
	b.out.print(t)
}

// printConnections shows what new connections cost by the number of services.
func (b *bench) printConnections(sizes []sizedResults) {
	t := &table{title: "Service proxy, new connections through a service"}
	head := []string{""}
	var names []string
	for _, s := range sizes {
		n := count(float64(s.size.services)) + " services: "
		if s.size.services == 1 {
			n = "1 service: "
		}
		head = append(head, n+"connections/s", "µs p50", "µs p99")
		for _, r := range s.results {
			if r.connections.rate > 0 && !slices.Contains(names, r.name) {
				names = append(names, r.name)
			}
		}
	}
	t.add(head...)
	for _, name := range names {
		row := []string{name}
		for _, s := range sizes {
			cells := []string{"", "", ""}
			for _, r := range s.results {
				if r.name == name && r.connections.rate > 0 {
					cells = []string{count(r.connections.rate), micros(r.connections.p50), micros(r.connections.p99)}
				}
			}
			row = append(row, cells...)
		}
		t.add(row...)
	}
	t.notes = []string{"from a client beside the node to all services in turn; µs from connect(2) until the connection is there, one at a time; connections/s from two clients at once, client and pods on the same CPUs"}
	b.out.print(t)
}

// printThroughput shows what one connection carries.
func (b *bench) printThroughput(sizes []sizedResults) {
	t := &table{title: "Service proxy, throughput of one connection"}
	t.add("", "Gbit/s", "of no proxy")
	var direct float64
	for _, s := range sizes {
		for _, r := range s.results {
			if r.throughput == 0 {
				continue
			}
			if r.name == directName {
				direct = r.throughput
			}
			t.add(r.name, fmt.Sprintf("%.1f", r.throughput/1e9), strings.TrimSpace(ratio(r.throughput, direct)))
		}
	}
	if len(t.rows) > 1 {
		b.out.print(t)
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// load is one run of dnsperf.
type load struct {
	file    string // of queries
	addr    string // of the server
	seconds int    // how long
	once    bool   // each query once instead of for some seconds
	rate    int    // queries/s, 0 for as many as possible
	latency bool   // record the latency of each query; costs the generator CPU
}

// loadResult is what dnsperf saw.
type loadResult struct {
	perSecond float64
	completed int
	lost      int
	rcodes    map[string]int
	latencies []time.Duration // sorted
}

// dnsperf's settings: two threads (the machine's CPUs), 16 sockets, 400
// queries outstanding. On the machine of docs/benchmarks.md more of each
// lowered the echo's rate, and fewer too. -e is EDNS with 4,096 bytes, so that
// no answer is truncated.
var dnsperfArgs = []string{"-e", "-c", "16", "-T", "2", "-q", "400", "-t", "2"}

func (l load) run(ctx context.Context) (*loadResult, error) {
	host, port, err := net.SplitHostPort(l.addr)
	if err != nil {
		return nil, err
	}
	args := append(slices.Clone(dnsperfArgs), "-s", host, "-p", port, "-d", l.file)
	if l.once {
		args = append(args, "-n", "1")
	} else {
		args = append(args, "-l", strconv.Itoa(l.seconds))
	}
	if l.rate > 0 {
		args = append(args, "-Q", strconv.Itoa(l.rate))
	}
	if l.latency {
		args = append(args, "-v")
	}
	cmd := exec.CommandContext(ctx, "dnsperf", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("dnsperf %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes())), context.Cause(ctx))
	}
	return parseDnsperf(&stdout)
}

var rcodeCount = regexp.MustCompile(`([A-Z]+) (\d+) \(`)

// parseDnsperf reads dnsperf's report, and with -v its lines
//
//	> NOERROR svc-2.ns2.svc.cluster.local A 0.000106
func parseDnsperf(r *bytes.Buffer) (*loadResult, error) {
	res := &loadResult{rcodes: map[string]int{}}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "> ") {
			seconds, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				continue // "> T name": timed out; counted as lost below
			}
			res.latencies = append(res.latencies, time.Duration(seconds*1e9))
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		first, _, _ := strings.Cut(value, " ")
		switch key {
		case "Queries completed":
			res.completed, _ = strconv.Atoi(first)
		case "Queries lost":
			res.lost, _ = strconv.Atoi(first)
		case "Queries per second":
			res.perSecond, _ = strconv.ParseFloat(first, 64)
		case "Response codes":
			for _, m := range rcodeCount.FindAllStringSubmatch(value, -1) {
				res.rcodes[m[1]], _ = strconv.Atoi(m[2])
			}
		}
	}
	if res.completed == 0 || res.perSecond == 0 {
		return nil, errors.New("dnsperf: no query was answered")
	}
	slices.Sort(res.latencies)
	return res, lines.Err()
}

// check tells whether the rcodes are those expected: the share of NXDOMAIN in
// the query set, and nothing else but NOERROR.
func (r *loadResult) check(nxdomain float64) error {
	if other := r.completed - r.rcodes["NOERROR"] - r.rcodes["NXDOMAIN"]; other > r.completed/1000 {
		return fmt.Errorf("%d of %d answers are neither NOERROR nor NXDOMAIN: %v", other, r.completed, r.rcodes)
	}
	if got := float64(r.rcodes["NXDOMAIN"]) / float64(r.completed); got < nxdomain-0.02 || got > nxdomain+0.02 {
		return fmt.Errorf("%.0f %% of the answers are NXDOMAIN, want %.0f %%", got*100, nxdomain*100)
	}
	return nil
}

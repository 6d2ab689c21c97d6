package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rutter-project/rutter/conformance/peer"
)

// size measures what is installed and what it takes when it rests.
func (b *bench) size(ctx context.Context) error {
	programs := &table{title: "Programs"}
	programs.add("", "MB on disk")
	for _, p := range []string{"rutter", "rutter-registry", "peers/coredns", "peers/kube-proxy"} {
		fi, err := os.Stat(b.program(p))
		if err != nil {
			return err
		}
		programs.add(p, fmt.Sprintf("%.1f", float64(fi.Size())/1e6))
	}
	programs.notes = []string{"Rutter's are built without symbol tables, the peers with Go's defaults, as their projects' own `go build`"}
	b.out.print(programs)

	dir, err := b.subdir("size")
	if err != nil {
		return err
	}
	reg, err := peer.StartRegistry(b.program("rutter-registry"), dir)
	if err != nil {
		return err
	}
	defer reg.Stop()
	memory := &table{title: "Resident memory in MB"}
	memory.add("", "resident", "anonymous")
	row := func(what string, p *peer.Process) error {
		m, err := p.Memory()
		memory.add(what, megabytes(m.Resident), megabytes(m.Anonymous))
		return err
	}
	if err := errors.Join(reg.Idle(time.Second, time.Minute), row("rutter-registry, empty", reg.Process)); err != nil {
		return err
	}
	cluster := shape{1000, 10, false}
	b.say("size: loading %s into the API", cluster)
	if err := cluster.fill(ctx, reg.Client, func(int) {}); err != nil {
		return err
	}
	if err := reg.AddNode(ctx, "bench", "", nodeAddress); err != nil {
		return err
	}
	for _, c := range proxyContenders {
		if !b.wanted(c.name) || c.legacy {
			continue
		}
		g, err := newGround(reg.Address())
		if err != nil {
			return err
		}
		p, err := c.start(b, dir, reg, g.node)
		if err == nil {
			if _, err = g.firstProgramming(ctx, p.Process, cluster, b.patience); err == nil {
				err = errors.Join(p.Idle(quietPeriod, time.Minute), row(c.name+", "+cluster.String(), p.Process))
			}
			p.Stop()
		}
		if err != nil {
			memory.notes = append(memory.notes, fmt.Sprintf("%s: %v", c.name, err))
		}
		if err := g.close(); err != nil {
			return err
		}
	}
	if err := errors.Join(reg.Idle(time.Second, time.Minute), row("rutter-registry, "+cluster.String(), reg.Process)); err != nil {
		return err
	}
	memory.notes = append(memory.notes, fmt.Sprintf("rutter-registry was ready %.1f s after its start in an empty directory", reg.Ready.Seconds()))
	b.out.print(memory)
	return nil
}

// Package timeouts limits TCP connections.
package timeouts

import (
	"strconv"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// Setup reads:
//
//	timeouts {
//	    read DURATION
//	    write DURATION
//	    idle DURATION
//	    maxtcpqueries NUMBER
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	for _, d := range lines {
		if err := d.Want(0, 0, "no argument"); err != nil {
			return nil, err
		}
		if len(d.Block) == 0 {
			e := corefile.Errorf(d.Name, "timeouts sets none")
			e.Expected = "a block with read, write, idle or maxtcpqueries"
			return nil, e
		}
		for _, p := range d.Block {
			if err := property(&b.Timeouts, p); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

func property(t *plugin.Timeouts, p corefile.Directive) error {
	var v *time.Duration
	switch p.Name.Text {
	case "read":
		v = &t.Read
	case "write":
		v = &t.Write
	case "idle":
		v = &t.Idle
	case "maxtcpqueries":
		return maxQueries(t, p)
	default:
		return corefile.Unknown("property of timeouts", p.Name, "read", "write", "idle", "maxtcpqueries")
	}
	if err := p.Want(1, 1, "a duration"); err != nil {
		return err
	}
	arg := p.Args[0]
	if n, err := strconv.Atoi(arg.Text); err == nil {
		arg.Text = strconv.Itoa(n) + "s" // the one place where CoreDNS takes bare seconds
	}
	d, err := arg.DurationFrom(time.Second)
	if err == nil && d > 24*time.Hour {
		e := corefile.Errorf(p.Args[0], "duration %s is too long", p.Args[0].Text)
		e.Expected = "at most 24h"
		return e
	}
	*v = d
	return err
}

// maxQueries reads a number of queries per connection; -1 is no limit.
func maxQueries(t *plugin.Timeouts, p corefile.Directive) error {
	if err := p.Want(1, 1, "a number, -1 for no limit"); err != nil {
		return err
	}
	if p.Args[0].Text == "-1" {
		t.MaxQueries = 0
		return nil
	}
	n, err := p.Args[0].Number(1, 1<<31-1)
	t.MaxQueries = n
	return err
}

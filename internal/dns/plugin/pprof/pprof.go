// Package pprof serves runtime profiles over HTTP.
package pprof

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "pprof"

// Setup reads:
//
//	pprof [ADDRESS] {
//	    block [RATE]
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	d := lines[0]
	if err := d.Want(0, 1, "nothing, or an address such as localhost:6053"); err != nil {
		return nil, err
	}
	addr := "localhost:6053"
	if len(d.Args) == 1 {
		addr = d.Args[0].Text
		if _, _, err := net.SplitHostPort(addr); err != nil {
			e := corefile.Errorf(d.Args[0], "%q is no address with a port", addr)
			e.Expected = "an address such as localhost:6053"
			return nil, e
		}
	}
	rate := 0
	for _, p := range d.Block {
		if p.Name.Text != "block" {
			return nil, corefile.Unknown("property of pprof", p.Name, "block")
		}
		if err := p.Want(0, 1, "nothing, or a rate"); err != nil {
			return nil, err
		}
		rate = 1
		if len(p.Args) == 1 {
			var err error
			if rate, err = strconv.Atoi(p.Args[0].Text); err != nil {
				return nil, corefile.Errorf(p.Args[0], "rate %q is no number", p.Args[0].Text)
			}
		}
	}
	var server *http.Server
	b.OnStart(func(context.Context) error {
		l, err := b.Env.Listen("tcp", addr)
		if err != nil {
			return plugin.Error(name, err)
		}
		runtime.SetBlockProfileRate(rate)
		server = &http.Server{Handler: mux()}
		s := server
		go func() { // ends with the server
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				b.Log(name).Error("pprof endpoint: " + err.Error())
			}
		}()
		return nil
	})
	b.OnShutdown(func() error {
		if server == nil {
			return nil
		}
		return server.Close()
	})
	return nil, nil
}

func mux() *http.ServeMux {
	m := http.NewServeMux()
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return m
}

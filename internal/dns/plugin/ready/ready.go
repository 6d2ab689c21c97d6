// Package ready answers HTTP requests for /ready: whether every plugin that
// can tell is ready for queries.
package ready

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
)

const name = "ready"

// endpoint is one address; all blocks of a configuration that name it share it.
type endpoint struct {
	addr string
	env  *plugin.Env
	log  *slog.Logger

	mu       sync.Mutex
	asked    []*asked
	users    int // blocks that have started
	stopping bool
	server   *http.Server
	bound    string // where it listens
}

// asked is a plugin of a block that tells whether it is ready.
type asked struct {
	name         string
	plugin       plugin.Readiness
	continuously bool
	ready        bool // was ready before
}

type key struct{ addr string }

// Setup reads:
//
//	ready [ADDRESS] {
//	    monitor until-ready|continuously
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	d := lines[0]
	if err := d.Want(0, 1, "nothing, or an address such as :8181"); err != nil {
		return nil, err
	}
	addr := ":8181"
	if len(d.Args) == 1 {
		addr = d.Args[0].Text
		if _, _, err := net.SplitHostPort(addr); err != nil {
			err := corefile.Errorf(d.Args[0], "%q is no address with a port", addr)
			err.Expected = "an address such as :8181 or 127.0.0.1:8181"
			return nil, err
		}
	}
	continuously := false
	for _, p := range d.Block {
		if p.Name.Text != "monitor" {
			return nil, corefile.Unknown("property of ready", p.Name, "monitor")
		}
		if err := p.Want(1, 1, "until-ready or continuously"); err != nil {
			return nil, err
		}
		if err := p.Args[0].OneOf("way to monitor", "until-ready", "continuously"); err != nil {
			return nil, err
		}
		continuously = p.Args[0].Text == "continuously"
	}
	e := b.Shared(key{addr}, func() any {
		return &endpoint{addr: addr, env: b.Env, log: b.Log(name)}
	}).(*endpoint)
	started := false
	b.OnStart(func(context.Context) error {
		err := e.start(b, continuously)
		started = err == nil
		return err
	})
	b.OnFinalShutdown(func() error { e.stopSoon(); return nil })
	b.OnShutdown(func() error {
		if !started {
			return nil
		}
		started = false
		return e.stop()
	})
	return nil, nil
}

// start adds the block's plugins; the first block opens the port.
func (e *endpoint) start(b *plugin.Block, continuously bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users == 0 {
		l, err := e.env.Listen("tcp", e.addr)
		if err != nil {
			return plugin.Error(name, err)
		}
		e.bound = l.Addr().String()
		mux := http.NewServeMux()
		mux.HandleFunc("/ready", e.serve)
		e.server = &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: 5 * time.Second}
		srv := e.server
		go func() { // ends with the server, in stop
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				e.log.Error("ready endpoint: " + err.Error())
			}
		}()
	}
	e.users++
	for _, h := range b.Handlers() {
		if r, ok := h.(plugin.Readiness); ok {
			e.asked = append(e.asked, &asked{name: h.Name(), plugin: r, continuously: continuously})
		}
	}
	return nil
}

func (e *endpoint) stopSoon() {
	e.mu.Lock()
	e.stopping = true
	e.mu.Unlock()
}

// stop closes the port with the last block.
func (e *endpoint) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users--; e.users > 0 {
		return nil
	}
	return e.server.Close()
}

func (e *endpoint) serve(w http.ResponseWriter, _ *http.Request) {
	waiting, stopping := e.waiting()
	switch {
	case stopping:
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "Shutting down")
	case len(waiting) > 0:
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, strings.Join(waiting, ","))
	default:
		_, _ = io.WriteString(w, http.StatusText(http.StatusOK))
	}
}

// waiting returns the sorted names of the plugins that are not ready.
func (e *endpoint) waiting() (names []string, stopping bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.asked {
		if a.ready && !a.continuously {
			continue
		}
		if a.ready = a.plugin.Ready(); !a.ready {
			names = append(names, a.name)
		}
	}
	slices.Sort(names)
	return names, e.stopping
}

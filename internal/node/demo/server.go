// Package demo is the server behind `rutter up --demo`: it says who it is, and
// its readiness can be switched, so that load balancing and readiness can be
// seen.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// lameDuck is how long a server goes on accepting after TERM: the time the
	// node's dataplane needs to stop choosing it.
	lameDuck = time.Second
	// drain bounds the wait for requests that are being answered.
	drain = 10 * time.Second
)

type server struct {
	name  string
	ready atomic.Bool
}

// Serve answers on listen until ctx ends, then lets open requests finish.
//
//	GET  any path     name, the address that was asked, and the client's
//	GET  /readyz      200 or 503
//	POST any path     readyz=ok or readyz=err, as a form or as the bare body
func Serve(ctx context.Context, listen string, log io.Writer) error {
	name := os.Getenv("HOSTNAME") // a pod's, which may share the host's network and name
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return fmt.Errorf("reading the host name: %w", err)
		}
	}
	s := &server{name: name}
	s.ready.Store(true)
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", listen, err)
	}
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	fmt.Fprintf(log, "%s listens on %s\n", name, l.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	fmt.Fprintf(log, "%s ends: no new connections after %s\n", name, lameDuck)
	s.ready.Store(false)
	h.SetKeepAlivesEnabled(false)
	select {
	case err := <-served:
		return err
	case <-time.After(lameDuck):
	}
	finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err = h.Shutdown(finish)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch {
	case r.Method == http.MethodPost:
		s.set(w, r)
	case r.URL.Path == "/readyz" && !s.ready.Load():
		http.Error(w, "err", http.StatusServiceUnavailable)
	case r.URL.Path == "/readyz":
		fmt.Fprintln(w, "ok")
	default:
		fmt.Fprintf(w, "%s %s (you are %s)\n", s.name, host(localAddr(r)), host(r.RemoteAddr))
	}
}

func (s *server) set(w http.ResponseWriter, r *http.Request) {
	const most = 1 << 10
	body, err := io.ReadAll(io.LimitReader(r.Body, most))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch value := strings.TrimSpace(string(body)); value {
	case "readyz=ok", "ok":
		s.ready.Store(true)
	case "readyz=err", "err":
		s.ready.Store(false)
	default:
		http.Error(w, "want readyz=ok or readyz=err", http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%s %s ready: %t\n", s.name, host(localAddr(r)), s.ready.Load())
}

func localAddr(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rutter-project/rutter/internal/proxy"
)

// Socket is the agent's local API, in the run directory: readable by root
// only, so it needs no credentials.
const Socket = "agent.sock"

// Status is what the agent says of itself, at /status on its socket.
type Status struct {
	Version string
	Node    string
	Started time.Time
	// Ready tells that the first complete picture is programmed and published.
	Ready bool
	// Waiting says what it waits for while it is not ready.
	Waiting string
	// Degraded lists what is not as it should be, in words; empty when all is.
	Degraded []string
	API      []APIStatus
	Catalog  CatalogStatus
	Publish  PublishStatus
	Proxy    proxy.Status
	DNS      DNSStatus
}

// APIStatus is the state of the watch of one kind.
type APIStatus struct {
	Kind      string
	Connected bool
	Since     time.Time
	LastEvent time.Time
	Error     string
}

// CatalogStatus says how much is known, and whether it is from a snapshot.
type CatalogStatus struct {
	Services, Endpoints, Slices, Namespaces, Nodes, Pods int
	// Stale names the kinds that are known only from the snapshot on disk.
	Stale string
	// SnapshotSaved is when that snapshot was written.
	SnapshotSaved time.Time
}

// DNSStatus says where DNS is served, and why not by the Corefile as it is now:
// empty when it is.
type DNSStatus struct {
	Listening        []string
	ReloadError      string    `json:",omitempty"`
	ReloadErrorSince time.Time `json:",omitzero"`
}

// serveStatus serves the local API on a unix socket until ctx ends. The
// returned function waits for its end.
func serveStatus(ctx context.Context, path string, status func() Status, traffic http.HandlerFunc, registry *prometheus.Registry, log *slog.Logger) (wait func(), err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("agent socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("agent socket: %w", err)
	}
	// The run directory is 0700 already; this keeps the socket closed even if
	// somebody opens the directory.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("agent socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(status()); err != nil {
			log.Debug("status not written", "error", err)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !status().Ready {
			http.Error(w, "the first complete picture is not published yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /traffic", traffic)
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("agent socket closed", "error", err)
		}
	}()
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	return func() { <-done; stop() }, nil
}

// FetchStatus asks the agent whose run directory holds the socket.
func FetchStatus(ctx context.Context, socket string) (Status, error) {
	var s Status
	resp, err := ask(ctx, socket, "/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("read the agent's status: %w", err)
	}
	return s, nil
}

// ask gets a page of the local API.
func ask(ctx context.Context, socket, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("the agent is not asked: %w; its socket is for root only, try sudo", errors.Unwrap(err))
	}
	if err != nil {
		return nil, fmt.Errorf("the agent does not answer on %s: %w; is `rutter agent` or `rutter up` running (--run-dir)?", socket, errors.Unwrap(err))
	}
	return resp, nil
}

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/rutter-project/rutter/internal/proxy"
)

// serveTraffic answers with what went to each service since the agent started,
// the busiest first.
func (a *agent) serveTraffic(w http.ResponseWriter, _ *http.Request) {
	if a.cfg.NoCounters {
		http.Error(w, "connections are not counted: the agent runs with --counters=off", http.StatusNotFound)
		return
	}
	if mode := a.proxy.Status().Mode; mode == proxy.ModeIPTables {
		http.Error(w, "mode "+mode+" does not count connections by endpoint; the others do", http.StatusNotFound)
		return
	}
	list, err := a.proxy.Traffic()
	if err != nil {
		http.Error(w, fmt.Sprintf("cannot read the kernel's counters: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(list); err != nil {
		a.cfg.Log.Debug("traffic not written", "error", err)
	}
}

// FetchTraffic asks the agent what went to each service.
func FetchTraffic(ctx context.Context, socket string) ([]proxy.Traffic, error) {
	resp, err := ask(ctx, socket, "/traffic")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return nil, fmt.Errorf("the agent says: %s", strings.TrimSpace(string(text)))
	}
	var list []proxy.Traffic
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, fmt.Errorf("read the services' traffic: %w", err)
	}
	return list, nil
}

package proxy

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
)

// Event is something that is told to the API server as an Event object.
type Event struct {
	// Service is the object; the zero value means this node.
	Service catalog.ServiceName
	Warning bool
	// Reason and Action are CamelCase words, Note is for people.
	Reason, Action, Note string
}

func (p *Proxy) event(e Event) {
	if p.cfg.Event != nil {
		p.cfg.Event(e)
	}
}

// pending tracks since when a change waits to be programmed; zero for none.
// Healthy means that none waits longer than two sync periods.
func (p *Proxy) healthyLocked() bool {
	return p.waitingSince.IsZero() || time.Since(p.waitingSince) < 2*p.cfg.SyncPeriod
}

// Healthy tells whether changes are programmed in time. Idle is healthy.
func (p *Proxy) Healthy() bool {
	p.healthMu.Lock()
	defer p.healthMu.Unlock()
	return p.healthyLocked()
}

// waiting notes that a change is to be programmed, done that all are.
func (p *Proxy) waiting() {
	p.healthMu.Lock()
	defer p.healthMu.Unlock()
	if p.waitingSince.IsZero() {
		p.waitingSince = time.Now()
	}
}

func (p *Proxy) done() {
	p.healthMu.Lock()
	defer p.healthMu.Unlock()
	p.waitingSince, p.updated = time.Time{}, time.Now()
}

// eligible tells whether load balancers should send traffic to this node: it
// exists and is not on its way out (KEP-3836).
func (p *Proxy) eligible() bool {
	n := p.cat.Node(p.cfg.Node)
	return n != nil && !n.Deleting && !n.ToBeDeleted
}

type familyHealth struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

type healthAnswer struct {
	LastUpdated  time.Time               `json:"lastUpdated"`
	CurrentTime  time.Time               `json:"currentTime"`
	NodeEligible *bool                   `json:"nodeEligible,omitempty"`
	Healthy      bool                    `json:"healthy"`
	Status       map[string]familyHealth `json:"status"`
}

// Healthz answers /healthz and /livez as kube-proxy does on port 10256.
func (p *Proxy) Healthz() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		eligible := p.eligible()
		p.answerHealth(w, &eligible, p.metrics.healthz)
	})
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { p.answerHealth(w, nil, p.metrics.livez) })
	return mux
}

func (p *Proxy) answerHealth(w http.ResponseWriter, eligible *bool, count counter) {
	p.healthMu.Lock()
	healthy, updated := p.healthyLocked(), p.updated
	p.healthMu.Unlock()
	now := time.Now()
	a := healthAnswer{LastUpdated: updated, CurrentTime: now, NodeEligible: eligible, Healthy: healthy, Status: make(map[string]familyHealth)}
	if healthy {
		// "Now" when all is well: idle is not stale.
		a.LastUpdated = now
	}
	for _, f := range families(p.cfg) {
		a.Status[f] = familyHealth{a.LastUpdated, healthy}
	}
	code := http.StatusOK
	if !healthy || eligible != nil && !*eligible {
		code = http.StatusServiceUnavailable
	}
	count.WithLabelValues(strconv.Itoa(code)).Inc()
	body, err := json.Marshal(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

package proxy

import (
	"slices"
	"time"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Status is what the proxy is doing.
type Status struct {
	Mode string // one of the modes; empty before Start
	// Adopted tells that the kernel holds what the catalogue says.
	Adopted                    bool
	Services, Ports, Endpoints int
	LastApply                  time.Time // zero before the first
	LastError                  string
	Repairs                    int // times that another program had changed our tables
	// Refused are the services that the kernel would not take, with its words.
	Refused []RefusedService
	// Partial are services that are programmed but for a part.
	Partial []PartialService
}

// RefusedService is a service that is not programmed as the catalogue says.
type RefusedService struct {
	Service catalog.ServiceName
	Error   string
}

// PartialService is a service of which a part was left out.
type PartialService struct {
	Service catalog.ServiceName
	Skipped []plan.Skip
}

// Status returns the present state.
func (p *Proxy) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{
		Mode: p.mode.name, Adopted: p.adopted, LastApply: p.lastApply, Repairs: p.repairs,
		Services: p.total.services, Ports: p.total.ports, Endpoints: p.total.endpoints,
	}
	if p.lastErr != nil {
		s.LastError = p.lastErr.Error()
	}
	for name, err := range p.refused {
		s.Refused = append(s.Refused, RefusedService{name, err.Error()})
	}
	for name, skipped := range p.skipped {
		s.Partial = append(s.Partial, PartialService{name, skipped})
	}
	slices.SortFunc(s.Refused, func(a, b RefusedService) int { return compareNames(a.Service, b.Service) })
	slices.SortFunc(s.Partial, func(a, b PartialService) int { return compareNames(a.Service, b.Service) })
	return s
}

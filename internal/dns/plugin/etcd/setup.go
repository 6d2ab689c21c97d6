package etcd

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/clienttls"
)

var properties = []string{"path", "endpoint", "tls", "credentials", "fallthrough", "min-lease-ttl", "max-lease-ttl", "stubzones", "debug", "upstream"}

// Setup reads:
//
//	etcd [ZONES...] {
//	    path PATH
//	    endpoint URL...
//	    tls [CERT KEY] [CA]
//	    credentials USER PASSWORD
//	    fallthrough [ZONES...]
//	    min-lease-ttl TTL
//	    max-lease-ttl TTL
//	}
//
// Of several lines the first one counts.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	d := lines[0]
	h := &handler{options: options{
		prefix: "skydns", endpoints: []string{"http://localhost:2379"},
		minLease: 30, maxLease: 86400,
	}}
	h.line = corefile.Hash([]corefile.ServerBlock{{Directives: lines[:1]}})
	zones, err := corefile.ZoneList(d.Args)
	if err != nil {
		return nil, err
	}
	if h.zones = zones; len(zones) == 0 {
		h.zones = b.Zones
	}
	for _, p := range d.Block {
		if err := h.property(b, p); err != nil {
			return nil, err
		}
	}
	b.OnStart(func(context.Context) error {
		s, err := h.dial()
		if err != nil {
			return plugin.Error(name, err)
		}
		h.store = s
		return nil
	})
	b.OnShutdown(func() error {
		if h.store == nil {
			return nil
		}
		return h.store.close()
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (o *options) property(b *plugin.Block, p corefile.Directive) error {
	switch p.Name.Text {
	case "path":
		if err := p.Want(1, 1, "a path such as skydns"); err != nil {
			return err
		}
		o.prefix = p.Args[0].Text
		return nil
	case "endpoint":
		if err := p.Want(1, -1, "URLs such as http://localhost:2379"); err != nil {
			return err
		}
		o.endpoints = nil
		for _, a := range p.Args {
			o.endpoints = append(o.endpoints, a.Text)
		}
		return nil
	case "tls":
		var err error
		o.tls, err = clienttls.Parse(b, p)
		return err
	case "credentials":
		if err := p.Want(2, 2, "a user and a password"); err != nil {
			return err
		}
		o.user, o.password = p.Args[0].Text, p.Args[1].Text
		return nil
	case "fallthrough":
		zones, err := corefile.ZoneList(p.Args)
		if len(zones) == 0 {
			zones = []string{"."}
		}
		o.fall.Zones = zones
		return err
	case "min-lease-ttl":
		return ttl(p, &o.minLease)
	case "max-lease-ttl":
		return ttl(p, &o.maxLease)
	case "stubzones", "debug", "upstream":
		return nil // of old versions; means nothing
	}
	return corefile.Unknown("property of etcd", p.Name, properties...)
}

// ttl reads seconds, or a duration.
func ttl(p corefile.Directive, v *uint32) error {
	if err := p.Want(1, 1, "seconds, or a duration"); err != nil {
		return err
	}
	t := p.Args[0]
	if _, err := strconv.ParseUint(t.Text, 10, 64); err == nil {
		t.Text += "s"
	}
	d, err := t.DurationFrom(0)
	if err == nil && d/time.Second > math.MaxUint32 {
		err = corefile.Errorf(p.Args[0], "TTL %s is too long", p.Args[0].Text)
	}
	*v = uint32(d / time.Second)
	return err
}

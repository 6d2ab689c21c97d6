package cache

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// options are what a cache line says.
type options struct {
	zones plugin.Zones

	success, denial class
	servfail        time.Duration
	keepTTL         bool

	prefetch    int           // hits; 0: never
	prefetchGap time.Duration // between them
	prefetchAt  int           // per cent of the TTL that is left

	staleFor       time.Duration // 0: never
	staleTTL       uint32
	verify         bool
	verifyTimeout  time.Duration // 0: as long as it takes
	recheck        time.Duration
	preferPositive bool
}

// class is what success and denial say.
type class struct {
	capacity int
	ttl      time.Duration // at most
	minTTL   time.Duration
	disabled plugin.Zones
}

func defaults() options {
	return options{
		success:     class{capacity: 10000, ttl: time.Hour, minTTL: 5 * time.Second},
		denial:      class{capacity: 10000, ttl: 30 * time.Minute, minTTL: 5 * time.Second},
		servfail:    5 * time.Second,
		prefetchGap: time.Minute,
		prefetchAt:  10,
	}
}

var properties = []string{"success", "denial", "prefetch", "serve_stale", "serve_stale_policy", "servfail", "disable", "keepttl"}

// Setup reads:
//
//	cache [TTL] [ZONES...] {
//	    success CAPACITY [TTL] [MINTTL]
//	    denial CAPACITY [TTL] [MINTTL]
//	    prefetch AMOUNT [DURATION] [PERCENTAGE%]
//	    serve_stale [DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]
//	    serve_stale_policy prefer_positive
//	    servfail DURATION
//	    disable success|denial [ZONES...]
//	    keepttl
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	if err := plugin.Once(lines); err != nil {
		return nil, err
	}
	o := defaults()
	if err := o.parse(b, lines[0]); err != nil {
		return nil, err
	}
	h := &handler{options: o, block: b, scope: scope.Of(o.zones...), now: time.Now}
	h.metrics = newMetrics(b.Env.Registry, strings.Join(o.zones, ","))
	h.stores = newStores(&o)
	b.OnStart(h.start)
	b.OnShutdown(h.stop)
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (o *options) parse(b *plugin.Block, d corefile.Directive) error {
	args := d.Args
	if len(args) > 0 {
		if _, err := strconv.Atoi(args[0].Text); err == nil {
			ttl, err := seconds(args[0], 1)
			if err != nil {
				return err
			}
			o.success.ttl, o.denial.ttl = ttl, ttl
			args = args[1:]
		}
	}
	o.zones = b.Zones
	if len(args) > 0 {
		zones, err := corefile.ZoneList(args)
		if err != nil {
			return err
		}
		o.zones = zones
	}
	var policy *corefile.Directive
	stale := false
	for i, p := range d.Block {
		switch p.Name.Text {
		case "serve_stale":
			stale = true
		case "serve_stale_policy":
			if policy != nil {
				return corefile.Errorf(p.Name, "serve_stale_policy stands twice; keep one")
			}
			policy = &d.Block[i]
		}
		if err := o.property(p); err != nil {
			return err
		}
	}
	if policy != nil && !stale {
		e := corefile.Errorf(policy.Name, "serve_stale_policy without serve_stale has no effect")
		e.Expected = "a serve_stale line beside it"
		return e
	}
	return nil
}

func (o *options) property(p corefile.Directive) error {
	switch p.Name.Text {
	case "success":
		return o.success.parse(p)
	case "denial":
		return o.denial.parse(p)
	case "prefetch":
		return o.parsePrefetch(p)
	case "serve_stale":
		return o.parseStale(p)
	case "serve_stale_policy":
		if err := p.Want(1, 1, "prefer_positive"); err != nil {
			return err
		}
		p.Args[0].Text = strings.ToLower(p.Args[0].Text)
		o.preferPositive = true
		return p.Args[0].OneOf("serve_stale_policy", "prefer_positive")
	case "servfail":
		if err := p.Want(1, 1, "a duration"); err != nil {
			return err
		}
		var err error
		o.servfail, err = atMost5m(p.Args[0])
		return err
	case "disable":
		return o.parseDisable(p)
	case "keepttl":
		o.keepTTL = true
		return p.Flag()
	}
	return corefile.Unknown("property of cache", p.Name, properties...)
}

func (c *class) parse(p corefile.Directive) error {
	if err := p.Want(1, -1, "CAPACITY [TTL] [MINTTL]"); err != nil {
		return err
	}
	var err error
	if c.capacity, err = strconv.Atoi(p.Args[0].Text); err != nil {
		return corefile.Errorf(p.Args[0], "capacity %q is no number", p.Args[0].Text)
	}
	if len(p.Args) > 1 {
		if c.ttl, err = seconds(p.Args[1], 1); err != nil {
			return err
		}
	}
	if len(p.Args) > 2 {
		if c.minTTL, err = seconds(p.Args[2], 0); err != nil {
			return err
		}
	}
	return nil
}

// seconds reads a TTL.
func seconds(t corefile.Token, least int) (time.Duration, error) {
	n, err := t.Number(least, math.MaxInt32) // RFC 2181 §8
	return time.Duration(n) * time.Second, err
}

// atMost5m reads a duration for failures: RFC 2308 §7 allows five minutes.
func atMost5m(t corefile.Token) (time.Duration, error) {
	d, err := t.DurationFrom(0)
	if err == nil && d > 5*time.Minute {
		e := corefile.Errorf(t, "duration %s is too long for failures", t.Text)
		e.Expected = "at most 5m (RFC 2308)"
		return 0, e
	}
	return d, err
}

func (o *options) parsePrefetch(p corefile.Directive) error {
	if err := p.Want(1, 3, "AMOUNT [DURATION] [PERCENTAGE%]"); err != nil {
		return err
	}
	var err error
	if o.prefetch, err = p.Args[0].Number(0, math.MaxInt32); err != nil {
		return err
	}
	if len(p.Args) > 1 {
		if o.prefetchGap, err = p.Args[1].Duration(); err != nil {
			return err
		}
	}
	if len(p.Args) > 2 {
		t := p.Args[2]
		number, ok := strings.CutSuffix(t.Text, "%")
		if o.prefetchAt, err = strconv.Atoi(number); !ok || err != nil || o.prefetchAt < 10 || o.prefetchAt > 90 {
			e := corefile.Errorf(t, "%q is no percentage to prefetch at", t.Text)
			e.Expected = "10% to 90%"
			return e
		}
	}
	return nil
}

func (o *options) parseStale(p corefile.Directive) error {
	const want = "[DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]]"
	if err := p.Want(0, 5, want); err != nil {
		return err
	}
	o.staleFor, o.verify, o.verifyTimeout, o.staleTTL, o.recheck = time.Hour, false, 0, 0, 0
	args := p.Args
	var err error
	take := func() corefile.Token {
		t := args[0]
		args = args[1:]
		return t
	}
	if len(args) > 0 {
		if o.staleFor, err = take().DurationFrom(0); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		t := take()
		t.Text = strings.ToLower(t.Text)
		if err := t.OneOf("way to refresh stale entries", "immediate", "verify"); err != nil {
			return err
		}
		o.verify = t.Text == "verify"
	}
	if len(args) > 0 && o.verify {
		if o.verifyTimeout, err = take().DurationFrom(0); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		t := take()
		d, err := t.DurationFrom(0)
		if err != nil {
			return err
		}
		if d%time.Second != 0 || d/time.Second > math.MaxUint32 {
			e := corefile.Errorf(t, "%s is no TTL", t.Text)
			e.Expected = fmt.Sprintf("a whole number of seconds up to %ds", uint32(math.MaxUint32))
			return e
		}
		o.staleTTL = uint32(d / time.Second)
	}
	if len(args) > 0 {
		if o.recheck, err = atMost5m(take()); err != nil {
			return err
		}
	}
	if len(args) > 0 {
		return corefile.Arguments(p, want)
	}
	return nil
}

func (o *options) parseDisable(p corefile.Directive) error {
	if err := p.Want(1, -1, "success or denial, and zones"); err != nil {
		return err
	}
	if err := p.Args[0].OneOf("cache to disable", "success", "denial"); err != nil {
		return err
	}
	zones := []string{"."}
	if len(p.Args) > 1 {
		var err error
		if zones, err = corefile.ZoneList(p.Args[1:]); err != nil {
			return err
		}
	}
	if p.Args[0].Text == "success" {
		o.success.disabled = zones
	} else {
		o.denial.disabled = zones
	}
	return nil
}

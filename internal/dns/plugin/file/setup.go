package file

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/scope"
)

// line is what the block of a file line says.
type line struct {
	every  time.Duration
	byTime bool
}

// Setup reads, any number of times:
//
//	file FILE [ZONES...] {
//	    reload DURATION
//	    reload_by_mtime
//	    fallthrough [ZONES...]
//	}
//
// fallthrough is for all lines of a server block.
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{log: b.Log(name), files: make(map[string]*File), byWire: make(map[string]*File)}
	for _, d := range lines {
		if err := d.Want(1, -1, "a zone file, and zones"); err != nil {
			return nil, err
		}
		l := line{every: time.Minute}
		for _, p := range d.Block {
			if err := h.property(&l, p); err != nil {
				return nil, err
			}
		}
		zones := []string(b.Zones)
		if len(d.Args) > 1 {
			var err error
			if zones, err = corefile.ZoneList(d.Args[1:]); err != nil {
				return nil, err
			}
		}
		for _, z := range zones {
			f := NewFile(b.File(d.Args[0].Text), z, h.log)
			if err := f.Read(); err != nil {
				if !errors.Is(err, fs.ErrNotExist) || l.every == 0 {
					return nil, corefile.Errorf(d.Args[0], "%w", err)
				}
				h.log.Warn("zone " + z + ": " + err.Error() + "; trying again every " + l.every.String())
			}
			h.add(f)
			if l.every > 0 {
				b.OnStart(func(ctx context.Context) error {
					go f.Watch(ctx, l.every, l.byTime) // ends with the configuration
					return nil
				})
			}
		}
	}
	h.fallScope = scope.Of(h.fall.Zones...)
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) add(f *File) {
	if h.files[f.Origin] == nil {
		h.zones = append(h.zones, f.Origin)
	}
	h.files[f.Origin] = f
	var buf [256]byte
	if n, err := dns.PackDomainName(f.Origin, buf[:], 0, nil, false); err == nil {
		h.byWire[string(buf[:n])] = f
	}
}

func (h *handler) property(l *line, p corefile.Directive) error {
	switch p.Name.Text {
	case "reload":
		if err := p.Want(1, 1, "a duration, 0s for never"); err != nil {
			return err
		}
		if p.Args[0].Text == "0" {
			l.every = 0
			return nil
		}
		var err error
		l.every, err = p.Args[0].DurationFrom(0)
		return err
	case "reload_by_mtime":
		l.byTime = true
		return p.Flag()
	case "fallthrough":
		zones, err := corefile.ZoneList(p.Args)
		if len(zones) == 0 {
			zones = []string{"."}
		}
		h.fall.Zones = zones
		return err
	case "upstream":
		return nil // of old versions; means nothing
	}
	return corefile.Unknown("property of file", p.Name, "reload", "reload_by_mtime", "fallthrough")
}

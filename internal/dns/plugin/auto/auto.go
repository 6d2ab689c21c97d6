// Package auto answers from the zone files of a directory, which come and go.
package auto

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/file"
)

const name = "auto"

type handler struct {
	next      plugin.Handler
	log       *slog.Logger
	zones     plugin.Zones // where to look at all
	directory string
	re        *regexp.Regexp
	template  string // of the origin, in the language of Regexp.Expand
	every     time.Duration

	loaded atomic.Pointer[set]
}

// set is the zones at one time.
type set struct {
	origins plugin.Zones
	files   map[string]*file.File
}

// Setup reads:
//
//	auto [ZONES...] {
//	    directory DIRECTORY [REGEXP ORIGIN]
//	    reload DURATION
//	}
func Setup(b *plugin.Block, lines []corefile.Directive) (plugin.New, error) {
	h := &handler{log: b.Log(name), re: regexp.MustCompile(`db\.(.*)`), template: "${1}", every: time.Minute}
	for _, d := range lines {
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
	}
	if h.directory == "" {
		e := corefile.Errorf(lines[0].Name, "auto has no directory")
		e.Expected = "a block with: directory DIRECTORY"
		return nil, e
	}
	h.loaded.Store(&set{})
	b.OnStart(func(ctx context.Context) error {
		h.walk()
		if h.every > 0 {
			go h.watch(ctx) // ends with the configuration
		}
		return nil
	})
	return func(next plugin.Handler) plugin.Handler {
		h.next = next
		return h
	}, nil
}

func (h *handler) property(b *plugin.Block, p corefile.Directive) error {
	switch p.Name.Text {
	case "directory":
		return h.setDirectory(b, p)
	case "reload":
		if err := p.Want(1, 1, "a duration, 0s for never"); err != nil {
			return err
		}
		if p.Args[0].Text == "0" {
			h.every = 0
			return nil
		}
		var err error
		h.every, err = p.Args[0].DurationFrom(0)
		return err
	case "upstream":
		return nil // of old versions; means nothing
	}
	return corefile.Unknown("property of auto", p.Name, "directory", "reload")
}

func (h *handler) setDirectory(b *plugin.Block, p corefile.Directive) error {
	if err := p.Want(1, 3, "DIRECTORY [REGEXP ORIGIN]"); err != nil {
		return err
	}
	h.directory = b.File(p.Args[0].Text)
	if _, err := os.Stat(h.directory); err != nil {
		if !os.IsNotExist(err) {
			return corefile.Errorf(p.Args[0], "%w", err)
		}
		h.log.Warn("directory " + h.directory + " does not exist; looking again every " + h.every.String())
	}
	switch len(p.Args) {
	case 2:
		return corefile.Arguments(p, "DIRECTORY [REGEXP ORIGIN]")
	case 3:
		re, err := p.Args[1].Regexp()
		if err != nil {
			return err
		}
		if re.NumSubexp() == 0 {
			e := corefile.Errorf(p.Args[1], "expression %q has no group", p.Args[1].Text)
			e.Expected = "the part of the file name that is the zone in parentheses"
			return e
		}
		h.re, h.template = re, strings.ReplaceAll(p.Args[2].Text, "{", "${")
	}
	return nil
}

func (h *handler) Name() string { return name }

// ServeDNS answers for the most specific of the loaded zones.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := &plugin.Request{W: w, Req: r}
	if h.zones.Matches(q.Name()) == "" {
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	s := h.loaded.Load()
	origin := s.origins.Matches(q.Name())
	if origin == "" {
		if h.next == nil {
			return dns.RcodeRefused, nil // it is authoritative for nothing else
		}
		return plugin.NextOrFailure(name, h.next, ctx, w, r)
	}
	return file.Answer(ctx, q, s.files[origin].Zone(), plugin.Fall{}, h.next, name)
}

func (h *handler) watch(ctx context.Context) {
	tick := time.NewTicker(h.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h.walk()
		}
	}
}

// walk makes the loaded zones what the directory has: new files are read,
// changed ones (by their serial) read again, zones without a file dropped.
func (h *handler) walk() {
	old := h.loaded.Load().files
	now := make(map[string]*file.File)
	dir := h.directory
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // the directory may be a link, as mounted ConfigMaps are
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			h.log.Warn("reading " + path + ": " + err.Error())
			return nil
		}
		if e.IsDir() {
			if strings.HasPrefix(e.Name(), "..") {
				return filepath.SkipDir // how Kubernetes swaps ConfigMaps; the files are linked
			}
			return nil
		}
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			return nil // a link to a directory, or to nothing
		}
		origin, ok := h.origin(e.Name())
		if !ok {
			return nil
		}
		if other := now[origin]; other != nil {
			h.log.Warn("two files are for zone " + origin + ": using " + other.Path() + ", not " + path)
			return nil
		}
		if f := old[origin]; f != nil {
			f.Move(path)
			f.Reload(false)
			now[origin] = f
			return nil
		}
		f := file.NewFile(path, origin, h.log)
		if err := f.Read(); err != nil {
			h.log.Warn("zone " + origin + " is not loaded: " + err.Error())
			return nil
		}
		h.log.Info("zone " + origin + " loaded from " + path)
		now[origin] = f
		return nil
	})
	if err != nil {
		h.log.Warn("reading " + dir + ": " + err.Error())
	}
	for origin := range old {
		if now[origin] == nil {
			h.log.Info("zone " + origin + " has no file any more and is dropped")
		}
	}
	h.loaded.Store(&set{origins: slices.Sorted(maps.Keys(now)), files: now})
}

// origin returns the zone that a file is for, if it is for one.
func (h *handler) origin(base string) (string, bool) {
	m := h.re.FindStringSubmatchIndex(base)
	if m == nil {
		return "", false
	}
	return plugin.NormalizeZone(string(h.re.ExpandString(nil, h.template, base, m)))
}

// Owns tells whether name (wire form, lower case) exists in a zone: what the
// cache knows of it is out of date then.
func (h *handler) Owns(wire []byte) bool {
	qname, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return false
	}
	s := h.loaded.Load()
	origin := s.origins.Matches(qname)
	return origin != "" && h.zones.Matches(qname) != "" && s.files[origin].Zone().Has(wire)
}

package log

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
)

// The formats that have names, in CoreDNS's and so in most log parsers' form.
const (
	common   = `{remote}:{port} ` + missing + ` {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize} {duration}`
	combined = common + ` "{>opcode}"`
)

// missing stands for a value that there is not.
const missing = "-"

// line is what the placeholders of one log line are filled from.
type line struct {
	ctx   context.Context
	q     *plugin.Request
	reply *dns.Msg // nil: none was written
	size  int
	took  time.Duration
}

// piece is a part of a format: text, or a placeholder's function.
type piece struct {
	text string
	fill func(b []byte, l *line) []byte
}

func (p *piece) append(b []byte, l *line) []byte {
	if p.fill == nil {
		return append(b, p.text...)
	}
	return p.fill(b, l)
}

// compile cuts a format into pieces. Placeholders that are not known stay as
// they are written.
func compile(format string) []piece {
	format = strings.NewReplacer("{common}", common, "{combined}", combined).Replace(format)
	var pieces []piece
	text := func(s string) {
		if s == "" {
			return
		}
		if n := len(pieces); n > 0 && pieces[n-1].fill == nil {
			pieces[n-1].text += s
			return
		}
		pieces = append(pieces, piece{text: s})
	}
	for {
		before, rest, ok := strings.Cut(format, "{")
		text(before)
		if !ok {
			return pieces
		}
		word, after, ok := strings.Cut(rest, "}")
		fill := placeholders[word]
		if label, is := strings.CutPrefix(word, "/"); is && metadata.ValidLabel(label) {
			fill = metadataValue(label)
		}
		if !ok || fill == nil {
			text("{")
			format = rest
			continue
		}
		pieces = append(pieces, piece{fill: fill})
		format = after
	}
}

func metadataValue(label string) func([]byte, *line) []byte {
	return func(b []byte, l *line) []byte {
		if v, ok := metadata.Value(l.ctx, label); ok && v != "" {
			return append(b, v...)
		}
		return append(b, missing...)
	}
}

var placeholders = map[string]func(b []byte, l *line) []byte{
	"type":     func(b []byte, l *line) []byte { return append(b, l.q.Type()...) },
	"name":     func(b []byte, l *line) []byte { return append(b, l.q.Name()...) },
	"class":    func(b []byte, l *line) []byte { return append(b, l.q.Class()...) },
	"proto":    func(b []byte, l *line) []byte { return append(b, l.q.Proto()...) },
	"size":     func(b []byte, l *line) []byte { return number(b, l.q.Req.Len()) },
	"remote":   func(b []byte, l *line) []byte { return address(b, l.q.Remote().Addr()) },
	"local":    func(b []byte, l *line) []byte { return address(b, l.q.Local().Addr()) },
	"port":     func(b []byte, l *line) []byte { return number(b, int(l.q.Remote().Port())) },
	"rsize":    func(b []byte, l *line) []byte { return number(b, l.size) },
	">do":      func(b []byte, l *line) []byte { return strconv.AppendBool(b, l.q.Do()) },
	">bufsize": func(b []byte, l *line) []byte { return number(b, l.q.Size()) },
	">id":      func(b []byte, l *line) []byte { return number(b, int(l.q.Req.Id)) },
	">opcode":  func(b []byte, l *line) []byte { return number(b, l.q.Req.Opcode) },
	"rcode":    rcode,
	">rflags":  flags,
	"duration": duration,
}

func number(b []byte, n int) []byte { return strconv.AppendInt(b, int64(n), 10) }

// address puts IPv6 addresses in brackets, since a port often follows.
func address(b []byte, a netip.Addr) []byte {
	switch {
	case !a.IsValid():
		return append(b, missing...)
	case a.Is6():
		return append(a.AppendTo(append(b, '[')), ']')
	}
	return a.AppendTo(b)
}

func rcode(b []byte, l *line) []byte {
	if l.reply == nil {
		return append(b, missing...)
	}
	if text, ok := dns.RcodeToString[l.reply.Rcode]; ok {
		return append(b, text...)
	}
	return number(b, l.reply.Rcode)
}

// duration is in seconds, in the shortest form that is exact.
func duration(b []byte, l *line) []byte {
	return append(strconv.AppendFloat(b, l.took.Seconds(), 'f', -1, 64), 's')
}

func flags(b []byte, l *line) []byte {
	if l.reply == nil {
		return append(b, missing...)
	}
	h := &l.reply.MsgHdr
	before := len(b)
	for _, f := range [...]struct {
		set  bool
		text string
	}{
		{h.Response, "qr"},
		{h.Authoritative, "aa"},
		{h.Truncated, "tc"},
		{h.RecursionDesired, "rd"},
		{h.RecursionAvailable, "ra"},
		{h.Zero, "z"},
		{h.AuthenticatedData, "ad"},
		{h.CheckingDisabled, "cd"},
	} {
		if !f.set {
			continue
		}
		if len(b) > before {
			b = append(b, ',')
		}
		b = append(b, f.text...)
	}
	if len(b) == before {
		return append(b, missing...)
	}
	return b
}

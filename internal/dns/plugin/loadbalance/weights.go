package loadbalance

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin"
)

// weights picks the first address of an answer by weight. The weights are read
// from a file, again when it changes.
type weights struct {
	path   string
	reload time.Duration // 0: never

	table atomic.Pointer[weightTable]
	sum   [sha256.Size]byte // of what table was read from; the reader's
}

// weightTable holds the weight of each address of a name (lower case, fully
// qualified).
type weightTable map[string]map[netip.Addr]uint8

// order moves one address to the front of the answer.
func (w *weights) order(m *dns.Msg) {
	table := w.table.Load()
	if table == nil || len(m.Question) == 0 {
		return
	}
	switch m.Question[0].Qtype {
	case dns.TypeA, dns.TypeAAAA:
		m.Answer = moveFirst(m.Answer, *table)
	case dns.TypeSRV:
		m.Extra = moveFirst(m.Extra, *table)
	}
}

// moveFirst returns list with the addresses behind everything else and one of
// them, chosen by weight, before the others.
func moveFirst(list []dns.RR, table weightTable) []dns.RR {
	p := partition(list)
	if len(p.addresses) < 2 {
		return list
	}
	total := 0
	each := make([]int, len(p.addresses))
	known := false
	for i, rr := range p.addresses {
		each[i] = 1 // the weight of an address that the file does not name
		if of, ok := table[strings.ToLower(rr.Header().Name)]; ok {
			known = true
			if weight, ok := of[addressOf(rr)]; ok {
				each[i] = int(weight)
			}
		}
		total += each[i]
	}
	if !known {
		return list
	}
	at := rand.IntN(total)
	for i := range p.addresses {
		if at -= each[i]; at < 0 {
			p.addresses[0], p.addresses[i] = p.addresses[i], p.addresses[0]
			break
		}
	}
	return p.join(p.cnames, p.addresses, p.mx, p.rest)
}

// load reads the file if it changed.
func (w *weights) load() error {
	src, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(src)
	if w.table.Load() != nil && sum == w.sum {
		return nil
	}
	table, err := parseWeights(src)
	if err != nil {
		return fmt.Errorf("%s:%w", w.path, err)
	}
	w.sum = sum
	w.table.Store(&table)
	return nil
}

// follow loads the file again each period until ctx ends. A file that cannot
// be read or parsed leaves the weights as they were.
func (w *weights) follow(ctx context.Context, log *slog.Logger) {
	t := time.NewTicker(w.reload)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := w.load(); err != nil {
				log.Warn("the weights stay as they are", "error", err)
			}
		}
	}
}

// parseWeights reads lines of a name, each followed by lines of an address and
// its weight; # begins a comment. Errors begin with the line number.
func parseWeights(src []byte) (weightTable, error) {
	table := make(weightTable)
	var current map[netip.Addr]uint8
	lines := bufio.NewScanner(bytes.NewReader(src))
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		switch len(words) {
		case 0:
		case 1:
			zone, ok := plugin.NormalizeZone(words[0])
			if !ok {
				return nil, fmt.Errorf("%d: %q is not a domain name", n, words[0])
			}
			current = make(map[netip.Addr]uint8)
			table[zone] = current
		case 2:
			addr, err := netip.ParseAddr(words[0])
			if err != nil {
				return nil, fmt.Errorf("%d: %q is not an address", n, words[0])
			}
			weight, err := strconv.ParseUint(words[1], 10, 8)
			if err != nil || weight == 0 {
				return nil, fmt.Errorf("%d: weight %q is not a number from 1 to 255", n, words[1])
			}
			if current == nil {
				return nil, fmt.Errorf("%d: an address before the first name", n)
			}
			current[addr.Unmap()] = uint8(weight)
		default:
			return nil, fmt.Errorf("%d: want a name, or an address and its weight", n)
		}
	}
	return table, lines.Err()
}

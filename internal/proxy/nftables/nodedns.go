package nftables

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/catalog"
	"github.com/rutter-project/rutter/internal/proxy/nfnetlink"
)

// keepDNS makes the elements that keep queries on this node last for d more;
// zero removes them.
func (t *table) keepDNS(d time.Duration) error {
	w := t.begin()
	var elements []element
	for _, a := range t.rules.plan.NodeDNS {
		if a.Addr().Is6() == t.rules.v6 {
			elements = append(elements,
				element{set: setNodeDNS, front: front{a.Addr(), a.Port(), catalog.UDP}},
				element{set: setNodeDNS, front: front{a.Addr(), a.Port(), catalog.TCP}})
		}
	}
	if len(elements) == 0 {
		return nil
	}
	// Kernels before 6.12 cannot set a new timeout on an element: it is
	// replaced. Adding first makes the delete valid whether it is there or has
	// timed out.
	t.nodeDNS(w, elements, true, time.Hour)
	t.nodeDNS(w, elements, false, 0)
	if d > 0 {
		t.nodeDNS(w, elements, true, d)
	}
	if err := t.conn.Commit(&w.Batch); err != nil {
		return fmt.Errorf("refresh set %s: %w", t.rules.sets[setNodeDNS].name, err)
	}
	return nil
}

func (t *table) nodeDNS(w *batch, elements []element, add bool, timeout time.Duration) {
	l := t.list(w, setNodeDNS, add)
	for _, e := range elements {
		l.open(128)
		at := len(w.Buf)
		w.Buf = nfnetlink.AppendNest(w.Buf, unix.NFTA_LIST_ELEM)
		w.Buf = appendKey(w.Buf, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte { return appendFront(b, e.front) })
		if add {
			ms := uint64(timeout.Milliseconds())
			w.Buf = nfnetlink.AppendAttr(w.Buf, unix.NFTA_SET_ELEM_TIMEOUT, []byte{byte(ms >> 56), byte(ms >> 48), byte(ms >> 40), byte(ms >> 32), byte(ms >> 24), byte(ms >> 16), byte(ms >> 8), byte(ms)})
		}
		nfnetlink.EndNest(w.Buf, at)
	}
	l.close()
}

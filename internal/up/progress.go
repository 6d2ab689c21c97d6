package up

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// progress prints a line per step: what is waited for while it goes on (on a
// terminal, rewritten each second), and how long it took.
type progress struct {
	w   io.Writer
	tty bool

	mu      sync.Mutex
	step    string
	what    string
	since   time.Time
	stop    chan struct{}
	stopped chan struct{}
}

// begin starts a step; what says what it waits for. A step that is open ends
// without a word: something else became more important.
func (p *progress) begin(step, what string) {
	p.abort()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.what, p.since = step, what, time.Now()
	if !p.tty {
		fmt.Fprintf(p.w, "  %-10s %s …\n", step, what)
		return
	}
	p.stop, p.stopped = make(chan struct{}), make(chan struct{})
	p.print()
	go p.tick(p.stop, p.stopped)
}

// waiting changes what the step waits for.
func (p *progress) waiting(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
}

// end finishes the step.
func (p *progress) end(result string) {
	p.abort()
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, "  %-10s %s after %.1f s\n", p.step, result, time.Since(p.since).Seconds())
}

// abort ends the open step, if any, and leaves its line to what comes next.
func (p *progress) abort() {
	p.mu.Lock()
	stop, stopped := p.stop, p.stopped
	p.stop = nil
	p.mu.Unlock()
	if stop != nil {
		close(stop)
		<-stopped
		fmt.Fprint(p.w, "\r\033[K")
	}
}

func (p *progress) tick(stop, stopped chan struct{}) {
	defer close(stopped)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case <-t.C:
			p.mu.Lock()
			p.print()
			p.mu.Unlock()
		}
	}
}

func (p *progress) print() {
	fmt.Fprintf(p.w, "\r\033[K  %-10s %s … %d s", p.step, p.what, int(time.Since(p.since).Seconds()))
}

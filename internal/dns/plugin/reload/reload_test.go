package reload

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: name, Setup: Setup}}

// process stands for the program around the plugin: a Corefile that changes,
// and what was put into service.
type process struct {
	mu     sync.Mutex
	text   string
	refuse bool
	loads  []string // hashes put into service or refused
}

func (p *process) set(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
}

func (p *process) load() ([]corefile.ServerBlock, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return corefile.Parse("Corefile", []byte(p.text), corefile.Options{})
}

func (p *process) reload(blocks []corefile.ServerBlock) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.loads = append(p.loads, corefile.Hash(blocks))
	if p.refuse {
		return errors.New("port in use")
	}
	return nil
}

func (p *process) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.loads)
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &process{text: ". {\n reload 10s 0s\n}"}
		env, log := plugintest.NewEnv()
		env.Load, env.Reload = p.load, p.reload
		var state error
		env.Reloaded = func(err error) { state = err }
		s := plugintest.StartIn(t, env, log, p.text, order...)
		blocks, _ := p.load()
		if !strings.Contains(log.String(), "Running configuration SHA512 = "+corefile.Hash(blocks)) {
			t.Errorf("log: %s", log)
		}
		if s.Metric(t, "coredns_reload_version_info", "hash", "sha512", "value", corefile.Hash(blocks)) != 1 {
			t.Error("no version_info of the running configuration")
		}
		step := func(text string, want int) {
			t.Helper()
			p.set(text)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if got := p.count(); got != want {
				t.Errorf("after %q: %d configurations were tried, want %d", text, got, want)
			}
		}
		step(". {\n\n  reload  10s 0s # the same\n}", 0)
		step(". {\n reload 10s", 0)
		if !strings.Contains(log.String(), "keeps running: Corefile:2") {
			t.Errorf("log: %s", log)
		}
		if state == nil {
			t.Error("a Corefile that does not parse is no failure")
		}
		step(". {\n reload 10s", 0)
		if n := strings.Count(log.String(), "keeps running: Corefile:2"); n != 1 {
			t.Errorf("it was said %d times, want once", n)
		}
		step(". {\n reload 10s 0s\n}", 0)
		if state != nil {
			t.Errorf("the old Corefile is back, and still: %v", state)
		}
		p.refuse = true
		step("bad. {\n}", 1)
		if state == nil {
			t.Error("a Corefile that is refused is no failure")
		}
		step("bad. {\n}", 1) // not again until it changes
		if got := s.Metric(t, "coredns_reload_failed_total"); got != 1 {
			t.Errorf("coredns_reload_failed_total is %v, want 1", got)
		}
		p.refuse = false
		step("good. {\n}", 2)
		if state != nil {
			t.Errorf("it was reloaded, and still: %v", state)
		}
		step("better. {\n}", 2) // that is for the new configuration's watcher
	})
}

func TestParse(t *testing.T) {
	tests := []struct {
		lines            string
		interval, jitter time.Duration
	}{
		{"reload", 30 * time.Second, 15 * time.Second},
		{"reload 10s", 10 * time.Second, 5 * time.Second},
		{"reload 2s 1s", 2 * time.Second, time.Second},
		{"reload 1m 0s\nreload 20s 3s", 20 * time.Second, 3 * time.Second},
	}
	for _, tt := range tests {
		env, _ := plugintest.NewEnv()
		sb, err := plugintest.Parse(". {\n"+tt.lines+"\n}", order)
		if err != nil {
			t.Fatal(err)
		}
		w := &watcher{env: env}
		for _, d := range sb.Directives {
			if err := w.parse(d); err != nil {
				t.Fatal(err)
			}
		}
		if w.interval != tt.interval || w.jitter != tt.jitter {
			t.Errorf("%q: got %s %s, want %s %s", tt.lines, w.interval, w.jitter, tt.interval, tt.jitter)
		}
	}
	plugintest.Refuses(t, order, [][2]string{
		{"reload 1s", "at least 2s"},
		{"reload 10", "not a duration"},
		{"reload 10s 1ms", "at least 1s"},
		{"reload 10s -1s", "at least 1s"},
		{"reload 10s 1s 1s", "wrong arguments"},
	})
}

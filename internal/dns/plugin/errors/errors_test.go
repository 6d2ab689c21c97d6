package errors

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/corefile"
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// failing is a plugin that returns an error which is the first label of the
// name, dashes as spaces; ok is no error, panic one.
type failing struct{}

func (failing) Name() string { return "failing" }

func (failing) ServeDNS(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	label, _, _ := strings.Cut(r.Question[0].Name, ".")
	switch label {
	case "ok":
		return dns.RcodeSuccess, w.WriteMsg(plugintest.Reply(r, dns.RcodeSuccess))
	case "panic":
		panic("at the disco")
	}
	return dns.RcodeServerFailure, errors.New(strings.ReplaceAll(label, "-", " "))
}

var order = []plugin.Entry{
	{Name: name, Setup: Setup, Effect: plugin.Observes},
	{Name: "failing", Effect: plugin.Answers, Setup: func(*plugin.Block, []corefile.Directive) (plugin.New, error) {
		return func(plugin.Handler) plugin.Handler { return failing{} }, nil
	}},
}

func ask(t *testing.T, s *plugintest.Server, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := s.Ask(n + " A"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLogsErrors(t *testing.T) {
	s := plugintest.Start(t, ". {\nerrors\nfailing\n}\n", order...)
	ask(t, s, "I-timed-out.Example.org.", "ok.")
	want := `level=ERROR msg="2 i-timed-out.example.org. A: I timed out" plugin=errors` + "\n"
	if diff := cmp.Diff(want, s.Log.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestConsolidate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := plugintest.Start(t, `. {
			errors stdout {
				consolidate 30s "^read .* timeout$"
				consolidate 10s "^dial " warning show_first
				consolidate 1m "once" info show_first
			}
			failing
		}`, order...)
		ask(t, s, "read-a-timeout.", "read-b-timeout.", "dial-x.", "dial-y.", "dial-z.", "once.", "other.")
		time.Sleep(31 * time.Second)
		ask(t, s, "read-c-timeout.") // still counting when the server stops
		synctest.Wait()
		if err := s.Block.Shutdown(); err != nil {
			t.Fatal(err)
		}
		want := `level=WARN msg="2 dial-x. A: dial x" plugin=errors
level=INFO msg="2 once. A: once" plugin=errors
level=ERROR msg="2 other. A: other" plugin=errors
level=WARN msg="3 errors like '^dial ' occurred in last 10s" plugin=errors
level=ERROR msg="2 errors like '^read .* timeout$' occurred in last 30s" plugin=errors
level=ERROR msg="1 errors like '^read .* timeout$' occurred in last 30s" plugin=errors
`
		if diff := cmp.Diff(want, s.Log.String()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestStacktrace(t *testing.T) {
	s := plugintest.Start(t, ". {\nerrors {\nstacktrace\n}\nfailing\n}\n", order...)
	defer func() {
		if recover() == nil {
			t.Error("the panic did not go on to the server, which counts it")
		}
		if got := s.Log.String(); !strings.Contains(got, "errors_test.go") {
			t.Errorf("the log has no stack: %q", got)
		}
	}()
	ask(t, s, "panic.")
}

func TestRefuses(t *testing.T) {
	block := func(property string) string { return "errors {\n" + property + "\n}" }
	plugintest.Refuses(t, order, [][2]string{
		{"errors\nerrors", "stands twice"},
		{"errors stderr", "cannot be written"},
		{"errors stdout stdout", "wrong arguments"},
		{block("consolidated 1s a"), `did you mean "consolidate"?`},
		{block("stacktrace on"), "no argument"},
		{block("consolidate 1s"), "wrong arguments"},
		{block("consolidate 1s a info show_first x"), "wrong arguments"},
		{block("consolidate 1 a"), "not a duration"},
		{block("consolidate 0s a"), "too short"},
		{block("consolidate -1s a"), "too short"},
		{block("consolidate 1s ("), "missing closing"},
		{block("consolidate 1s " + strings.Repeat("a", 10001)), "longer than"},
		{block("consolidate 1s a show_first info"), "before show_first"},
		{block("consolidate 1s a warn"), "unknown word"},
	})
	plugintest.Accepts(t, order, "errors", "errors stdout", block("consolidate 1s a error show_first\nconsolidate 1s b show_first\nstacktrace"))
}

package bind

import (
	"slices"
	"testing"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

var order = []plugin.Entry{{Name: "bind", Setup: Setup}}

func TestAddresses(t *testing.T) {
	tests := []struct {
		lines string
		want  []string
	}{
		{"bind 127.0.0.1", []string{"127.0.0.1"}},
		{"bind 127.0.0.1 0:0::1 127.0.0.1\nbind 127.0.0.2", []string{"127.0.0.1", "::1", "127.0.0.2"}},
		{"bind 127.0.0.1 127.0.0.2 {\nexcept 127.0.0.2\n}", []string{"127.0.0.1"}},
		{"bind fe80::1%eth0", []string{"fe80::1%eth0"}},
	}
	for _, tt := range tests {
		env, _ := plugintest.NewEnv()
		b, err := plugintest.Build(env, ". {\n"+tt.lines+"\n}\n", order)
		if err != nil {
			t.Errorf("%q: %v", tt.lines, err)
			continue
		}
		if !slices.Equal(b.Bind, tt.want) {
			t.Errorf("%q: got %v, want %v", tt.lines, b.Bind, tt.want)
		}
	}
}

func TestInterface(t *testing.T) {
	env, _ := plugintest.NewEnv()
	b, err := plugintest.Build(env, ". {\nbind lo\n}\n", order)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(b.Bind, "127.0.0.1") {
		t.Errorf("got %v, want 127.0.0.1 among the addresses of lo", b.Bind)
	}
	env, _ = plugintest.NewEnv()
	b, err = plugintest.Build(env, ". {\nbind lo 192.0.2.1 {\nexcept lo\n}\n}\n", order)
	if err != nil || !slices.Equal(b.Bind, []string{"192.0.2.1"}) {
		t.Errorf("got %v, %v", b, err)
	}
}

func TestRefuses(t *testing.T) {
	plugintest.Refuses(t, order, [][2]string{
		{"bind", "wrong arguments"},
		{"bind nosuchif", "neither an IP address nor a network interface"},
		{"bind 127.0.0.1 {\nexcept\n}", "wrong arguments"},
		{"bind 127.0.0.1 {\nwithout 127.0.0.1\n}", "unknown property"},
		{"bind 127.0.0.1 {\nexcept 127.0.0.1\n}", "leaves no address"},
		{"bind 127.0.0.1 {\nexcept nosuchif\n}", "neither"},
	})
}

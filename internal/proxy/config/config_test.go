package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/proxy/plan"
)

// Each file is a configuration with what it gives: warnings, an error (its
// parts a line each), or the result in full.
func TestFiles(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := make(map[string]string)
			for _, f := range archive.Files {
				part[f.Name] = strings.TrimSpace(string(f.Data))
			}
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(part["config.yaml"]+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			var f Flags
			f.Register(pflag.NewFlagSet("test", pflag.ContinueOnError))
			f.File = path
			c, warnings, err := f.Resolve()
			for i := range warnings {
				warnings[i] = strings.TrimPrefix(warnings[i], path+": ")
			}
			got := ""
			if err != nil {
				text, ok := strings.CutPrefix(err.Error(), path+": ")
				if !ok || strings.Contains(text, "\n") {
					t.Errorf("not one line that names the file: %q", err)
				}
				got = strings.ReplaceAll(text, "; ", "\n")
			}
			if d := cmp.Diff(part["error"], got); d != "" {
				t.Errorf("error:\n%s", d)
			}
			if want, ok := part["warnings"]; ok || err == nil {
				slices.Sort(warnings)
				lines := strings.Split(want, "\n")
				slices.Sort(lines)
				if d := cmp.Diff(strings.Join(lines, "\n"), strings.Join(warnings, "\n")); d != "" {
					t.Errorf("warnings:\n%s", d)
				}
			}
			if want := part["result.yaml"]; want != "" {
				text, err := c.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(want, strings.TrimSpace(string(text))); d != "" {
					t.Errorf("result:\n%s", d)
				}
				// What was written reads the same.
				again, warnings, err := Parse(text)
				if err != nil || len(warnings) > 0 {
					t.Fatal(warnings, err)
				}
				if d := cmp.Diff(c, again); d != "" {
					t.Errorf("written and read again:\n%s", d)
				}
			}
		})
	}
}

func resolve(t *testing.T, args ...string) (*Config, error) {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	var f Flags
	f.Register(set)
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	c, _, err := f.Resolve()
	return c, err
}

func TestFlags(t *testing.T) {
	c, err := resolve(t, "--proxy-mode=nftables", "--cluster-cidr=10.244.0.0/16,fd00::/48", "--masquerade-all",
		"--iptables-sync-period=1m", "--bind-address=192.0.2.1", "--healthz-port=0", "--metrics-port=9999",
		"--feature-gates=AllowServiceExternalIPs=false", "--conntrack-max-per-core=0", "--oom-score-adj=-5", "--v=4")
	if err != nil {
		t.Fatal(err)
	}
	if c.HealthzBindAddress != "" || c.MetricsBindAddress != "127.0.0.1:9999" || c.NFTables.SyncPeriod != "1m" || *c.OOMScoreAdj != -5 || c.Logging.Verbosity != 4 {
		t.Errorf("%+v", c)
	}
	p := c.Proxy()
	want := plan.Detector{Mode: plan.DetectCIDR, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00::/48")}}
	if !p.MasqueradeAll || !p.NoExternalIPs || p.Detect.Mode != want.Mode || !slices.Equal(p.Detect.CIDRs, want.CIDRs) ||
		!slices.Equal(p.NodeIPs, []netip.Addr{netip.MustParseAddr("192.0.2.1")}) || !slices.Equal(p.NodePortAddresses, []string{"primary"}) {
		t.Errorf("%+v", p)
	}
	for _, args := range [][]string{
		{"--proxy-mode=carrierpigeon"}, {"--iptables-sync-period=x"}, {"--feature-gates=x"}, {"--no-such-flag"},
		{"--hostname-override="}, {"--conntrack-min=many"}, {"--iptables-min-sync-period=1h"},
	} {
		if _, err := resolve(t, args...); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	// A file replaces all but a few flags.
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte("apiVersion: "+APIVersion+"\nkind: "+Kind+"\nmode: nftables\nhostnameOverride: file\nlogging: {verbosity: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err = resolve(t, "--config="+path, "--proxy-mode=ipvs", "--hostname-override=flag", "--v=6")
	if err != nil || c.Mode != "nftables" || c.HostnameOverride != "flag" || c.Logging.Verbosity != 6 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDetectModes(t *testing.T) {
	for mode, want := range map[string]plan.Detector{
		"NodeCIDR":            {},
		"BridgeInterface":     {Mode: plan.DetectInterface, Interface: "cni0"},
		"InterfaceNamePrefix": {Mode: plan.DetectInterfacePrefix, Interface: "cali"},
	} {
		c, err := resolve(t, "--detect-local-mode="+mode, "--pod-bridge-interface=cni0", "--pod-interface-name-prefix=cali")
		if err != nil {
			t.Fatal(err)
		}
		if p := c.Proxy(); p.Detect.Mode != want.Mode || p.Detect.Interface != want.Interface || p.NodeCIDR != (mode == "NodeCIDR") {
			t.Errorf("%s: %+v", mode, p)
		}
		if p := c.Proxy(); !slices.Equal(p.NodePortAddresses, []string{"0.0.0.0/0", "::/0"}) {
			t.Errorf("mode iptables serves node ports on %v", p.NodePortAddresses)
		}
	}
}

func TestSettings(t *testing.T) {
	c := New()
	c.Conntrack.UDPTimeout = "45s"
	c.Conntrack.TCPBeLiberal = true
	got := c.Settings(8)
	want := []Setting{
		{"net/netfilter/nf_conntrack_max", "262144", false},
		{"/sys/module/nf_conntrack/parameters/hashsize", "65536", true},
		{"net/netfilter/nf_conntrack_tcp_timeout_established", "86400", false},
		{"net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600", false},
		{"net/netfilter/nf_conntrack_udp_timeout", "45", false},
		{"net/netfilter/nf_conntrack_tcp_be_liberal", "1", false},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := c.Settings(1)[0]; s.Value != "131072" {
		t.Errorf("at least conntrack.min: %v", s)
	}
	if s := c.Settings(64)[0]; s.Value != "1048576" {
		t.Errorf("at most 1048576: %v", s)
	}
	path := filepath.Join(t.TempDir(), "setting")
	for _, tt := range []struct {
		now   string
		s     Setting
		after string
	}{
		{"5\n", Setting{Value: "7"}, "7"},
		{"7\n", Setting{Value: "7"}, "7\n"},
		{"9\n", Setting{Value: "7", AtLeast: true}, "9\n"},
		{"5\n", Setting{Value: "7", AtLeast: true}, "7"},
	} {
		if err := os.WriteFile(path, []byte(tt.now), 0o600); err != nil {
			t.Fatal(err)
		}
		tt.s.Key = path
		if err := tt.s.Apply(); err != nil {
			t.Fatal(err)
		}
		if after, _ := os.ReadFile(path); string(after) != tt.after {
			t.Errorf("%q, %+v: %q", tt.now, tt.s, after)
		}
	}
	for list, n := range map[string]int{"0-3": 4, "0": 1, "0-1,4-7": 6, "": 0, "x": 0} {
		if countRanges(list) != n {
			t.Errorf("%q: %d CPUs", list, countRanges(list))
		}
	}
}

// Whatever the bytes, reading and validating ends in a configuration or an
// error of one line.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(archive.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := Parse(text)
		if err == nil {
			c.Complete()
			if err = c.Validate(); err == nil {
				c.Proxy()
				c.Settings(2)
				if _, err := c.Marshal(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %q", err)
		}
	})
}

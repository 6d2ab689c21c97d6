package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each line of the table is a command line and what it says: output, or the
// error, of which the first words are compared.
func TestDNSCommandLine(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("example.org {\n    erorrs\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lacking := filepath.Join(dir, "lacking")
	if err := os.WriteFile(lacking, []byte("example.org {\n    dnstap x\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args  string
		want  string
		usage bool
	}{
		{"dns -version", "Rutter-", false},
		{"dns --version", "Rutter-", false},
		{"dns -plugins", "Plugins, in the order in which queries meet them:\n  dns.root\n", false},
		{"dns -help", "Serve DNS by a Corefile", false},
		{"dns -port 53", "flag provided but not defined: -port", true},
		{"dns -dns.port many", `-dns.port "many": want a number from 1 to 65535`, true},
		{"dns -p 0", `-dns.port "0": want a number from 1 to 65535`, true},
		{"dns Corefile", `rutter dns takes no words besides flags, got "Corefile"`, true},
		{"dns -conf " + filepath.Join(dir, "none"), "reading the Corefile: open " + dir, false},
		{"dns -conf " + bad, bad + `:2: unknown directive "erorrs"; did you mean "errors"?`, false},
		{"dns -conf " + lacking, lacking + `:2: directive "dnstap" is a CoreDNS plugin that Rutter does not have`, false},
	} {
		root := newRootCommand()
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(strings.Fields(test.args))
		err := root.Execute()
		got := out.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, test.want) {
			t.Errorf("rutter %s:\n%s\nwant %s", test.args, got, test.want)
		}
		if _, usage := err.(usageError); usage != test.usage {
			t.Errorf("rutter %s: a usage error: %v", test.args, usage)
		}
	}
}

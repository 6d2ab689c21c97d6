package kubernetes_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// Each file of the archive is the inside of a kubernetes block; its name is the
// expected error, or "accepted ...".
func TestSetup(t *testing.T) {
	ar, err := txtar.ParseFile("testdata/setup.txt")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kubeconfig, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	entry := plugin.Entry{Name: "kubernetes", Setup: kubernetes.Setup(published().ForAll), Effect: plugin.Local}
	for _, f := range ar.Files {
		env, _ := plugintest.NewEnv()
		text := strings.ReplaceAll(string(f.Data), "$KUBECONFIG", kubeconfig)
		_, err := plugintest.Build(env, "cluster.local in-addr.arpa {\n"+text+"}\n", []plugin.Entry{entry})
		got := "accepted"
		if err != nil {
			got = err.Error()
		}
		want := f.Name
		if strings.HasPrefix(want, "accepted") {
			want = "accepted"
		}
		if got != want {
			t.Errorf("%s\ngot:  %s\nwant: %s", text, got, want)
		}
	}
}

package kubeconfig

import (
	"os"
	"path/filepath"
	"testing"
)

const want = `apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Y2E=
    server: https://127.0.0.1:6443
  name: rutter
contexts:
- context:
    cluster: rutter
    user: rutter:admin
  name: rutter:admin@rutter
current-context: rutter:admin@rutter
kind: Config
users:
- name: rutter:admin
  user:
    client-certificate-data: Y2VydA==
    client-key-data: a2V5
`

// TestWrite: the text is as documented, and an older file that everybody may
// read is replaced by one that only its owner may.
func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, Access{Server: "https://127.0.0.1:6443", CA: []byte("ca"), User: "rutter:admin", Cert: []byte("cert"), Key: []byte("key")}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

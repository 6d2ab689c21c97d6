package dns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/rutter-project/rutter/conformance/peer"
)

// etcd is a real one, reached over its JSON gateway.
type etcd struct {
	*peer.Process
	url string
}

// startEtcd starts etcd in a directory of its own.
func startEtcd(t *testing.T) *etcd {
	t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		t.Skip("etcd is not installed (Debian: etcd-server)")
	}
	var urls [2]string
	for i := range urls {
		port, err := peer.Port()
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = fmt.Sprintf("http://127.0.0.1:%d", port)
	}
	dir := t.TempDir()
	p, err := peer.Start(peer.Command{Name: "etcd", Dir: dir, Env: []string{"ETCD_UNSUPPORTED_ARCH=arm64"}, Args: []string{
		path, "--data-dir", dir + "/data", "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
		"--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1], "--initial-cluster", "default=" + urls[1]}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	e := &etcd{Process: p, url: urls[0]}
	if err := e.WaitFor("serving", time.Minute, func() error { return e.put("/started", "") }); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *etcd) put(key, value string) error {
	body, err := json.Marshal(map[string][]byte{"key": []byte(key), "value": []byte(value)}) // bytes are base64
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Post(e.url+"/v3/kv/put", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: putting %s: %s", key, resp.Status)
	}
	return nil
}

// load puts "key value" lines.
func (e *etcd) load(lines string) error {
	for line := range strings.Lines(lines) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			if err := e.put(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

package prometheus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// certificate writes a self-signed certificate for 127.0.0.1 and its key.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	write(t, dir, "cert.pem", string(cert))
	write(t, dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	return pool
}

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	pool := certificate(t, dir)
	path := write(t, dir, "web.yml", "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  min_version: TLS13\n")
	env, log := plugintest.NewEnv()
	var addr string
	env.Listen = func(network, _ string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		if err == nil {
			addr = l.Addr().String()
		}
		return l, err
	}
	plugintest.StartIn(t, env, log, ". {\n prometheus {\n tls "+path+"\n}\n}", entries()...)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.TLS.Version != tls.VersionTLS13 {
		t.Errorf("status %d, TLS version %x", resp.StatusCode, resp.TLS.Version)
	}
}

func TestWebConfigErrors(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	const good = "  cert_file: cert.pem\n  key_file: key.pem\n"
	for text, want := range map[string]string{
		"":                     "tls_server_config needs cert_file and key_file",
		"basic_auth_users: {}": `error unmarshaling JSON: while decoding JSON: json: unknown field "basic_auth_users"`,
		"tls_server_config:\n  cert_file: none\n  key_file: key.pem\n": "open " + dir + "/none: no such file or directory",
		"tls_server_config:\n" + good + "  client_auth_type: Always\n": `client_auth_type "Always" is none of Go's (RequireAndVerifyClientCert)`,
		"tls_server_config:\n" + good + "  min_version: SSL3\n":        `min_version "SSL3" is none of TLS10, TLS11, TLS12, TLS13`,
		"tls_server_config:\n" + good + "  client_ca_file: key.pem\n":  "client_ca_file has no certificate",
	} {
		path := write(t, dir, "web.yml", text)
		if _, err := serverTLS(path); err == nil || err.Error() != path+": "+want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

package forward

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/rutter-project/rutter/internal/dns/plugin/plugintest"
)

// certificate makes one for 127.0.0.1 and dns.test that signs itself, and
// returns the directory with it (cert.pem, key.pem).
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dns.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"dns.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return cert, plugintest.WriteFiles(t, map[string]string{"cert.pem": string(certPEM), "key.pem": string(keyPEM)})
}

func TestOverTLS(t *testing.T) {
	cert, dir := certificate(t)
	var clients atomic.Int32
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			clients.Add(int32(len(s.PeerCertificates)))
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{Listener: l, Net: "tcp-tls", Handler: answer("192.0.2.1")}
	go func() { _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { _ = srv.Shutdown() })
	addr := l.Addr().String()
	host, port, _ := net.SplitHostPort(addr)
	good := "NOERROR ra\na. 60 IN A 192.0.2.1\n"
	tests := []struct{ line, want string }{
		{"forward . tls://" + addr + " {\ntls " + dir + "/cert.pem\n}", good}, // the address is in the certificate
		{"forward . tls://" + addr + " {\ntls " + dir + "/cert.pem\ntls_servername dns.test\n}", good},
		{"forward . tls://" + host + "%dns.test:" + port + " {\ntls " + dir + "/cert.pem\n}", good},
		{"forward . tls://" + addr + " {\ntls " + dir + "/cert.pem " + dir + "/key.pem " + dir + "/cert.pem\n}", good},
		{"forward . tls://" + addr + " {\ntls " + dir + "/cert.pem\ntls_servername other.test\n}", "SERVFAIL\n"},
		{"forward . tls://" + addr, "SERVFAIL\n"}, // nobody vouches for it
	}
	for _, tt := range tests {
		s := plugintest.Start(t, ". {\n"+tt.line+"\n}\n", order...)
		want(t, s, "a. A", tt.want)
		want(t, s, "a. A tcp", tt.want)
	}
	if clients.Load() == 0 {
		t.Error("the client certificate was not shown")
	}
}

func TestOverHTTPS(t *testing.T) {
	cert, dir := certificate(t)
	var methods atomic.Pointer[string]
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods.Store(&r.Method)
		raw, err := io.ReadAll(r.Body)
		if r.Method == http.MethodGet {
			raw, err = base64.RawURLEncoding.DecodeString(r.URL.Query().Get("dns"))
		}
		q := new(dns.Msg)
		if err != nil || r.URL.Path != "/dns-query" || q.Unpack(raw) != nil || q.Id != 0 {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		switch q.Question[0].Name {
		case "error.":
			http.Error(w, "sorry", http.StatusBadGateway)
			return
		case "html.":
			w.Header().Set("Content-Type", "text/html")
		default:
			w.Header().Set("Content-Type", mediaType)
		}
		out, _ := plugintest.Reply(q, dns.RcodeSuccess, q.Question[0].Name+" 60 IN A 192.0.2.1").Pack()
		_, _ = w.Write(out)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	addr := strings.TrimPrefix(srv.URL, "https://")
	for _, method := range []string{"POST", "GET"} {
		s := plugintest.Start(t, ". {\nforward . https://"+addr+" {\ntls "+dir+"/cert.pem\ndoh_method "+method+"\nmax_connect_attempts 1\n}\n}\n", order...)
		want(t, s, "a. A", "NOERROR ra\na. 60 IN A 192.0.2.1\n")
		if got := methods.Load(); got == nil || *got != method {
			t.Errorf("asked with %v, want %s", got, method)
		}
		want(t, s, "error. A", "SERVFAIL\n")
		want(t, s, "html. A", "SERVFAIL\n")
	}
}

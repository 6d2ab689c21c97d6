package prometheus

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// webConfig is the file of the tls property: the part about TLS of what
// Prometheus' exporters call a web configuration. Its other parts (users,
// headers) are refused, not passed over.
type webConfig struct {
	TLS *webTLS `json:"tls_server_config"`
}

type webTLS struct {
	Cert       string `json:"cert_file"`
	Key        string `json:"key_file"`
	ClientCA   string `json:"client_ca_file"`
	ClientAuth string `json:"client_auth_type"`
	MinVersion string `json:"min_version"`
	MaxVersion string `json:"max_version"`
}

var (
	clientAuths = map[string]tls.ClientAuthType{
		"": tls.NoClientCert, "NoClientCert": tls.NoClientCert, "RequestClientCert": tls.RequestClientCert,
		"RequireAnyClientCert": tls.RequireAnyClientCert, "VerifyClientCertIfGiven": tls.VerifyClientCertIfGiven,
		"RequireAndVerifyClientCert": tls.RequireAndVerifyClientCert,
	}
	tlsVersions = map[string]uint16{"": 0, "TLS10": tls.VersionTLS10, "TLS11": tls.VersionTLS11, "TLS12": tls.VersionTLS12, "TLS13": tls.VersionTLS13}
)

// serverTLS returns a configuration that reads path and the files it names
// again for each connection: scrapes are rare, and certificates are renewed.
func serverTLS(path string) (*tls.Config, error) {
	if _, err := readWebConfig(path); err != nil {
		return nil, err
	}
	return &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return readWebConfig(path) }}, nil
}

func readWebConfig(path string) (*tls.Config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var web webConfig
	if err := yaml.UnmarshalStrict(src, &web); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t := web.TLS
	if t == nil || t.Cert == "" || t.Key == "" {
		return nil, fmt.Errorf("%s: tls_server_config needs cert_file and key_file", path)
	}
	beside := func(file string) string { // the files are named relative to this one
		if filepath.IsAbs(file) {
			return file
		}
		return filepath.Join(filepath.Dir(path), file)
	}
	cert, err := tls.LoadX509KeyPair(beside(t.Cert), beside(t.Key))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	cfg := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
	var known bool
	if cfg.ClientAuth, known = clientAuths[t.ClientAuth]; !known {
		return nil, fmt.Errorf("%s: client_auth_type %q is none of Go's (RequireAndVerifyClientCert)", path, t.ClientAuth)
	}
	if cfg.MinVersion, known = tlsVersions[t.MinVersion]; !known {
		return nil, fmt.Errorf("%s: min_version %q is none of TLS10, TLS11, TLS12, TLS13", path, t.MinVersion)
	}
	if cfg.MaxVersion, known = tlsVersions[t.MaxVersion]; !known {
		return nil, fmt.Errorf("%s: max_version %q is none of TLS10, TLS11, TLS12, TLS13", path, t.MaxVersion)
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	if t.ClientCA != "" {
		pem, err := os.ReadFile(beside(t.ClientCA))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: client_ca_file has no certificate", path)
		}
	}
	return cfg, nil
}

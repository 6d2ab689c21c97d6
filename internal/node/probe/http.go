package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"golang.org/x/sys/unix"
)

const (
	// userAgent is what servers know probes by, and leave out of their logs.
	userAgent    = "kube-probe/1.36"
	maxBody      = 10 << 10
	maxRedirects = 10
)

type httpGet struct {
	client *http.Client
	url    *url.URL
	host   string
	header http.Header
}

func newHTTPGet(g *corev1.HTTPGetAction, addr string, port int) (*httpGet, error) {
	if g.Host != "" {
		addr = g.Host
	}
	path := g.Path
	if path == "" {
		path = "/"
	}
	u, err := url.Parse(path) // may carry a query
	if err != nil {
		return nil, fmt.Errorf("readiness probe: path %q: %w", g.Path, err)
	}
	u.Scheme = strings.ToLower(string(g.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	u.Host = net.JoinHostPort(addr, strconv.Itoa(port))

	h := &httpGet{url: u, header: http.Header{"User-Agent": {userAgent}, "Accept": {"*/*"}}}
	for _, f := range g.HTTPHeaders {
		name := http.CanonicalHeaderKey(f.Name)
		switch name {
		case "Host":
			h.host = f.Value
		case "Accept", "User-Agent":
			h.header.Set(name, f.Value)
		default:
			h.header.Add(name, f.Value)
		}
	}
	h.client = &http.Client{
		Transport: &http.Transport{
			DialContext:        dialer().DialContext,
			DisableKeepAlives:  true,
			DisableCompression: true,
			Proxy:              nil,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // the kubelet's contract: probes do not verify
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if req.URL.Hostname() != u.Hostname() {
				return http.ErrUseLastResponse
			}
			if len(via) >= maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			return nil
		},
	}
	return h, nil
}

func (h *httpGet) Probe(ctx context.Context) (Result, string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url.String(), nil)
	if err != nil {
		return Failure, err.Error()
	}
	req.Header = h.header.Clone()
	if accept, ok := req.Header["Accept"]; ok && accept[0] == "" {
		delete(req.Header, "Accept") // explicitly empty means none
	}
	req.Host = h.host
	res, err := h.client.Do(req)
	if err != nil {
		return Failure, err.Error()
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return Failure, err.Error()
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return Success, oneLine(string(body))
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return Success, fmt.Sprintf("redirected to another host (%s), which is not followed", res.Header.Get("Location"))
	}
	return Failure, fmt.Sprintf("GET %s answered %s", h.url, res.Status)
}

// dialer closes probe connections within a second instead of leaving them in
// TIME_WAIT for a minute, where they pile up (kubernetes/kubernetes #89898).
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 1})
		})
	}}
}

// oneLine cuts text to what fits into a condition's message.
func oneLine(s string) string {
	const enough = 200
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > enough {
		s = s[:enough] + "…"
	}
	return s
}

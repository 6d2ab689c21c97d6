package forward

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// httpClient asks one upstream over HTTPS (RFC 8484).
type httpClient struct {
	client *http.Client
	url    string
	get    bool
}

func newHTTPClient(u *upstream, o *options) *httpClient {
	return &httpClient{
		client: &http.Client{Transport: &http.Transport{
			DialContext:         func(ctx context.Context, network, _ string) (net.Conn, error) { return u.dial(ctx, network) },
			TLSClientConfig:     u.tls,
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     o.expire,
			MaxIdleConnsPerHost: o.maxIdle,
			MaxConnsPerHost:     streams.conns,
		}},
		url: "https://" + u.addr + "/dns-query",
		get: o.dohGet,
	}
}

func (c *httpClient) close() { c.client.CloseIdleConnections() }

const mediaType = "application/dns-message"

func (c *httpClient) exchange(ctx context.Context, msg []byte, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// An ID of 0 lets HTTP caches see equal queries (RFC 8484 §4.1).
	msg = append([]byte{0, 0}, msg[2:]...)
	method, url, body := http.MethodPost, c.url, io.Reader(bytes.NewReader(msg))
	if c.get {
		method, url, body = http.MethodGet, c.url+"?dns="+base64.RawURLEncoding.EncodeToString(msg), nil
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", mediaType)
	if !c.get {
		req.Header.Set("Content-Type", mediaType)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", c.url, resp.Status)
	}
	if t := resp.Header.Get("Content-Type"); t != mediaType {
		return nil, fmt.Errorf("%s answered with content type %q", c.url, t)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 64<<10))
}

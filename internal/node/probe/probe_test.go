package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// split gives a test server's address and port.
func split(t *testing.T, address string) (string, int) {
	t.Helper()
	host, port, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(address, "https://"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return host, n
}

func look(t *testing.T, p *corev1.Probe, addr string, ports []corev1.ContainerPort, run Runner) (Result, string) {
	t.Helper()
	h, err := New(p, addr, ports, run)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return h.Probe(ctx)
}

func TestHTTPGet(t *testing.T) {
	var seen atomic.Pointer[http.Request]
	mux := http.NewServeMux()
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/status/"))
		w.WriteHeader(code)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/status/200", http.StatusFound) })
	mux.HandleFunc("/here-bad", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/status/500", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://other.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	// Until the test is over: a handler that ends when the client goes answers 200.
	hang := make(chan struct{})
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { <-hang })
	mux.HandleFunc("/huge", func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			fmt.Fprintln(w, strings.Repeat("x", 1000))
		}
	})
	record := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.Store(r)
		mux.ServeHTTP(w, r)
	})
	plain := httptest.NewServer(record)
	defer plain.Close()
	tls := httptest.NewTLSServer(record)
	defer tls.Close()
	defer close(hang)

	for _, c := range []struct {
		path string
		want Result
		why  string // part of what is said
	}{
		{"/status/200", Success, ""}, {"/status/204", Success, ""}, {"/status/399", Success, ""},
		{"/status/400", Failure, "400"}, {"/status/503", Failure, "503 Service Unavailable"},
		{"/status/200?x=1", Success, ""},
		{"/here", Success, ""}, {"/here-bad", Failure, "500"},
		{"/away", Success, "redirected to another host (http://other.invalid/)"},
		{"/loop", Failure, "stopped after 10 redirects"},
		{"/hang", Failure, "deadline"}, {"/huge", Success, ""},
		{"", Failure, "404"}, // the default path is /
	} {
		for _, server := range []*httptest.Server{plain, tls} {
			addr, port := split(t, server.URL)
			g := &corev1.HTTPGetAction{Path: c.path, Port: intstr.FromInt(port)}
			if server == tls {
				g.Scheme = corev1.URISchemeHTTPS
			}
			got, why := look(t, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: g}}, addr, nil, nil)
			if got != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%s%s: %v %q, want %v with %q", server.URL, c.path, got, why, c.want, c.why)
			}
		}
	}

	addr, port := split(t, plain.URL)
	g := &corev1.HTTPGetAction{Path: "/status/200", Port: intstr.FromString("http"), HTTPHeaders: []corev1.HTTPHeader{
		{Name: "Host", Value: "www.example"}, {Name: "x-a", Value: "1"}, {Name: "X-A", Value: "2"}, {Name: "Accept", Value: ""},
	}}
	ports := []corev1.ContainerPort{{Name: "http", ContainerPort: int32(port)}}
	if got, why := look(t, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: g}}, addr, ports, nil); got != Success {
		t.Fatal(why)
	}
	last := seen.Load()
	if last.Host != "www.example" || strings.Join(last.Header["X-A"], ",") != "1,2" || !strings.HasPrefix(last.UserAgent(), "kube-probe/") || !last.Close {
		t.Errorf("request: host %q, headers %v, close %t", last.Host, last.Header, last.Close)
	}
	if _, ok := last.Header["Accept"]; ok {
		t.Error("an empty Accept was sent")
	}
}

func TestNothingListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port := split(t, l.Addr().String())
	tcp := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(port)}}}
	if got, why := look(t, tcp, "127.0.0.1", nil, nil); got != Success {
		t.Errorf("tcp while somebody listens: %v %s", got, why)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	http := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt(port)}}}
	for _, p := range []*corev1.Probe{tcp, http} {
		if got, why := look(t, p, "127.0.0.1", nil, nil); got != Failure || !strings.Contains(why, "refused") {
			t.Errorf("%v: %v %q", p, got, why)
		}
	}
}

// hostRunner runs probe commands on the host.
type hostRunner struct{ err error }

func (r hostRunner) RunProbe(ctx context.Context, argv []string) (int, string, error) {
	if r.err != nil {
		return 0, "", r.err
	}
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out), nil
	}
	return 0, string(out), err
}

func TestExec(t *testing.T) {
	for _, c := range []struct {
		script string
		run    hostRunner
		want   Result
		why    string
	}{
		{"echo fine", hostRunner{}, Success, "fine"},
		{"echo not yet; exit 3", hostRunner{}, Failure, "command exited with 3: not yet"},
		{"exec sleep 60", hostRunner{}, Failure, "timed out"},
		{"", hostRunner{errors.New("no pod")}, Unknown, "no pod"},
	} {
		p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", c.script}}}}
		if got, why := look(t, p, "", nil, c.run); got != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%q: %v %q, want %v %q", c.script, got, why, c.want, c.why)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		port intstr.IntOrString
		want string
	}{
		{intstr.FromString("metrics"), `the pod has no port named "metrics": add --port metrics=NUMBER`},
		{intstr.FromInt(0), "port 0 is not within 1-65535"},
		{intstr.FromInt(65536), "port 65536 is not within 1-65535"},
	} {
		p := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: c.port}}}
		if _, err := New(p, "127.0.0.1", nil, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.port.String(), err, c.want)
		}
	}
	if _, err := New(&corev1.Probe{}, "", nil, nil); err == nil {
		t.Error("a probe that asks nothing was made")
	}
	g := &corev1.HTTPGetAction{Path: "http://[", Port: intstr.FromInt(80)}
	var bad *url.Error
	if _, err := New(&corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: g}}, "127.0.0.1", nil, nil); !errors.As(err, &bad) {
		t.Errorf("a path that is none: %v", err)
	}
}

// Thresholds: results as letters (f, S, u), and the readiness after each.
func TestThresholds(t *testing.T) {
	for _, c := range []struct {
		name             string
		success, failure int32
		results, ready   string
	}{
		{"defaults", 0, 0, "SffSfffS", "11111101"},
		{"begins not ready", 0, 0, "fffS", "0001"},
		{"two successes", 2, 1, "SfSSfSS", "0001001"},
		{"unknown counts for neither", 2, 2, "SuSfuuf", "0011110"},
		{"counts are of one kind in a row", 1, 3, "SffSffSfff", "1111111110"},
		{"first failure at once", 1, 1, "SfSf", "1010"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := NewWorker(&corev1.Probe{SuccessThreshold: c.success, FailureThreshold: c.failure}, nil)
			got := ""
			for _, r := range c.results {
				before := w.ready
				changed := w.count(map[rune]Result{'f': Failure, 'S': Success, 'u': Unknown}[r])
				if changed != (before != w.ready) {
					t.Errorf("changed %t, but %t → %t", changed, before, w.ready)
				}
				got += map[bool]string{false: "0", true: "1"}[w.ready]
			}
			if got != c.ready {
				t.Errorf("%s gives %s, want %s", c.results, got, c.ready)
			}
		})
	}
}

// scripted answers with one result after the other, the last one for ever.
type scripted struct {
	results []Result
	looked  chan int // how often so far
	n       int
}

func (s *scripted) Probe(context.Context) (Result, string) {
	r := s.results[min(s.n, len(s.results)-1)]
	s.n++
	s.looked <- s.n
	return r, fmt.Sprint("look ", s.n)
}

func TestWorkerRun(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	h := &scripted{results: []Result{Failure, Unknown, Unknown, Unknown, Success, Failure}, looked: make(chan int, 100)}
	type change struct {
		ready bool
		why   string
	}
	changes := make(chan change, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		NewWorker(&corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1}, h).Run(ctx, func(ready bool, why string) { changes <- change{ready, why} })
	}()
	// Look 1 fails; 2, 3 and 4 are one look that could not be made; 5 succeeds.
	if got := <-changes; got != (change{true, "look 5"}) {
		t.Errorf("first change %+v", got)
	}
	if got := <-changes; got != (change{false, "look 6"}) {
		t.Errorf("second change %+v", got)
	}
	cancel()
	<-done
}

func TestWorkerRunEndsWithinItsDelay(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		NewWorker(&corev1.Probe{InitialDelaySeconds: 3600}, nil).Run(ctx, nil) // a probe would panic
	}()
	cancel()
	<-done
}

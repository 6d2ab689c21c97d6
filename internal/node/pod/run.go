// Package pod runs a process as a pod on a host without a kubelet: it makes
// the sandbox, registers the Pod object, keeps its status true, and takes all
// of it away again.
//
// One supervisor owns one pod from Run's beginning to its end. If it dies, the
// process dies with it (see sandbox.Pause), and Sweep removes the rest.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/probe"
	"github.com/rutter-project/rutter/internal/node/sandbox"
)

const (
	// requestTimeout bounds one request to the API.
	requestTimeout = 5 * time.Second
	// startTimeout bounds the wait for the API and the Node object.
	startTimeout = 60 * time.Second
	// announceTimeout is how long the API may keep a process from its TERM.
	announceTimeout = time.Second
	// drainDelay is several times what a change takes from the API to the
	// kernel of a node that keeps up.
	drainDelay = 250 * time.Millisecond
	// farewellTimeout bounds the last words to the API. What it did not hear
	// then, a sweep tells it.
	farewellTimeout = 5 * time.Second
)

// Config is what the pods of one node have in common.
type Config struct {
	Client   *kubeapi.Client
	RunDir   string
	NodeName string
	// PodCIDRs, ClusterDNS and Zone are taken from the Node object if empty.
	PodCIDRs   []netip.Prefix
	ClusterDNS []string
	Zone       string

	Log *slog.Logger
	// Progress hears, in one line each, what is being waited for and what was
	// done differently from what was asked. May be nil.
	Progress func(string)
}

// Stdio is what the process gets as standard input, output and error. With TTY
// they are the slave of a terminal.
type Stdio struct {
	Files [3]*os.File
	TTY   bool
	// Log, if set, gets output and error instead of Files[1] and Files[2]; it
	// is opened when the pod has a directory, which it is given.
	Log func(dir string) (io.WriteCloser, error)
}

// Pod is a running one.
type Pod struct {
	cfg    Config
	spec   Spec
	uid    types.UID
	box    *sandbox.Sandbox
	pods   kubeapi.Resource[corev1.Pod, corev1.PodList]
	status *status
	env    []string
	shared bool // it is a plain process of the host
	stops  chan stopRequest
	log    *slog.Logger

	process *sandbox.Child
	control *control
	events  *events
	logDone chan error // the log has been written to its end; nil without one
	// signalled is set when the end was asked for by a signal or a stop: the
	// pod is then taken out of the API whatever Spec.Remove says.
	mu        sync.Mutex // guards signalled and box.Record
	signalled bool
}

// stopRequest asks for the end of the process.
type stopRequest struct {
	grace time.Duration
	known bool // the API knows: it is where the request comes from
	gone  bool // the object is gone from there
}

// Name is the pod's name, also where it was generated.
func (p *Pod) Name() string { return p.spec.Name }

// Run runs the pod from beginning to end. started is called once the process
// runs. When ctx ends the process gets TERM, Spec.Grace, KILL. The error tells
// why the pod could not be run; a process that ran and failed is no error.
func Run(ctx context.Context, cfg Config, spec Spec, stdio Stdio, started func(*Pod)) (Exit, error) {
	if err := spec.Complete(); err != nil {
		return Exit{}, err
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	var err error
	if cfg.RunDir, err = filepath.Abs(cfg.RunDir); err != nil {
		return Exit{}, fmt.Errorf("finding the run directory: %w", err)
	}
	p := &Pod{cfg: cfg, spec: spec, pods: cfg.Client.Pods(spec.Namespace), stops: make(chan stopRequest, 8), log: cfg.Log}
	if err := p.start(ctx, stdio); err != nil {
		var start *sandbox.StartError
		if errors.As(err, &start) {
			return Exit{Code: start.Code}, err
		}
		return Exit{Code: 1}, err
	}
	if started != nil {
		started(p)
	}
	return p.supervise(ctx)
}

// supervise follows the process until it has ended and the pod is put away.
func (p *Pod) supervise(ctx context.Context) (Exit, error) {
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var tasks sync.WaitGroup
	send := &sender{pods: p.pods, name: p.spec.Name, uid: p.uid, status: p.status, log: p.log}
	tasks.Go(func() { send.run(background) })
	watch := &watcher{pods: p.pods, name: p.spec.Name, uid: p.uid, status: p.status, log: p.log}
	tasks.Go(func() {
		watch.run(background, func(grace time.Duration, gone bool) { p.ask(stopRequest{grace, true, gone}) })
	})
	tasks.Go(func() { p.control.serve(background) })
	tasks.Go(func() { p.events.run(background) })
	probing, stopProbing := context.WithCancel(background)
	p.startProbes(probing, &tasks)

	exit, gone := p.untilEnd(ctx)
	stopProbing()

	p.status.end(exit)
	err := p.putAway(ctx, send, gone, func() { cancel(); tasks.Wait() })
	return exit, err
}

// untilEnd waits for the process, and ends it when asked to.
func (p *Pod) untilEnd(ctx context.Context) (exit Exit, gone bool) {
	done := ctx.Done()
	var kill <-chan time.Time
	var killAt time.Time
	stop := func(grace time.Duration, known bool) {
		at := time.Now().Add(grace)
		switch {
		case kill == nil:
			p.log.Info("ending", "pod", p.spec.Name, "grace", grace)
			p.terminate(ctx, grace, known)
		case !at.Before(killAt):
			return // already ending, and sooner
		}
		kill, killAt = time.After(grace), at
	}
	for {
		select {
		case <-p.process.Done():
			return p.process.Wait(), gone
		case <-done:
			done = nil
			p.markSignalled()
			stop(p.spec.Grace, false)
		case r := <-p.stops:
			gone = gone || r.gone
			p.markSignalled()
			stop(r.grace, r.known)
		case <-kill:
			_ = p.box.Kill()
			return p.process.Wait(), gone
		}
	}
}

// terminate asks the process to end, after the API: from then on the pod's
// endpoints are marked terminating, and nothing new is sent there.
func (p *Pod) terminate(ctx context.Context, grace time.Duration, known bool) {
	ready := p.status.isReady()
	p.record(func(r *sandbox.Record) { r.Phase = "Terminating" })
	p.events.add(corev1.EventTypeNormal, reasonKilling, fmt.Sprintf("Stopping process with a grace period of %s", grace))
	if grace == 0 {
		return
	}
	if !known {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), announceTimeout)
		defer cancel()
		seconds := int64((grace + time.Second - 1) / time.Second)
		err := p.pods.Delete(attempt, p.spec.Name, metav1.DeleteOptions{GracePeriodSeconds: &seconds, Preconditions: &metav1.Preconditions{UID: &p.uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			p.log.Warn("telling the API that the pod ends", "pod", p.spec.Name, "error", err)
		}
	}
	if ready && len(p.spec.Ports) > 0 {
		p.drain(grace)
	}
	_ = p.process.Signal(unix.SIGTERM)
}

// drain gives the dataplanes the moment they need to learn that the pod ends,
// before it does: endpoints and TERM otherwise race, and connections that come
// late find a closed port (kubernetes/kubernetes #43576).
func (p *Pod) drain(grace time.Duration) {
	select {
	case <-p.process.Done():
	case <-time.After(min(drainDelay, grace/2)):
	}
}

// Signal passes a signal on to the process. One that usually ends a process
// also means that the pod is to be taken out of the API.
func (p *Pod) Signal(sig os.Signal) {
	switch sig {
	case unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGKILL:
		p.markSignalled()
	}
	_ = p.process.Signal(sig)
}

// Stop asks for TERM, grace, KILL. It does not wait.
func (p *Pod) Stop(grace time.Duration) { p.ask(stopRequest{grace: grace}) }

func (p *Pod) ask(r stopRequest) {
	select {
	case p.stops <- r:
	default: // as many are waiting already
	}
}

func (p *Pod) markSignalled() {
	p.mu.Lock()
	p.signalled = true
	p.mu.Unlock()
}

func (p *Pod) wasSignalled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signalled
}

// startProbes keeps the readiness up to date. Without a probe a pod is ready
// as long as it runs.
func (p *Pod) startProbes(ctx context.Context, tasks *sync.WaitGroup) {
	if p.spec.Readiness == nil {
		return
	}
	h, err := probe.New(p.spec.Readiness, p.box.Record.Addrs[0].String(), p.spec.Ports, p)
	if err != nil { // start has tried it already
		p.log.Error("readiness probe", "error", err)
		return
	}
	w := probe.NewWorker(p.spec.Readiness, h)
	tasks.Go(func() {
		w.Run(ctx, func(ready bool, why string) {
			p.log.Info("readiness changed", "pod", p.spec.Name, "ready", ready, "probe", why)
			p.status.update(func(s *status) {
				s.ready = ready
				s.unready = ""
				if !ready {
					s.unready = "readiness probe failed: " + why
				}
			})
			p.record(func(r *sandbox.Record) { r.Ready = ready })
			if !ready {
				p.events.add(corev1.EventTypeWarning, reasonUnhealthy, "Readiness probe failed: "+why)
			}
		})
	})
}

// end notes the process's end. The sender is not woken: whether that is still
// to be told is decided when the pod is put away.
func (s *status) end(e Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.ready, s.unready, s.exit, s.finished = corev1.PodSucceeded, false, "", e, time.Now()
	if e.Code != 0 {
		s.phase = corev1.PodFailed
	}
}

// putAway tells the API of the end and removes the sandbox. stopTasks ends the
// pod's background tasks and waits for them.
func (p *Pod) putAway(ctx context.Context, send *sender, gone bool, stopTasks func()) error {
	_ = p.box.Kill() // whatever the process left running
	stopTasks()
	farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTimeout)
	defer cancel()
	remove := p.spec.Remove || p.wasSignalled() || gone

	// First out of the API, so that endpoints go while the address is still
	// taken, then the sandbox.
	var told error
	switch {
	case gone:
	case remove:
		told = p.deregister(farewell)
	case send.deliver(farewell):
		remove = true // somebody deleted it just now
	}
	if told != nil {
		p.log.Warn("taking the pod out of the API; the agent's next sweep does it", "pod", p.spec.Name, "error", told)
	}
	var errs []error
	errs = append(errs, p.box.Stop())
	if p.logDone != nil {
		errs = append(errs, <-p.logDone)
	}
	if remove {
		return errors.Join(append(errs, p.box.Dir.Remove())...)
	}
	st := p.status.object()
	p.box.Record.Phase, p.box.Record.Ready = string(st.Phase), false
	p.box.Record.ExitCode, p.box.Record.Finished = p.status.exit.Code, time.Now()
	return errors.Join(append(errs, p.box.Save(), p.box.Dir.Release())...)
}

// deregister deletes exactly this pod's object, at once.
func (p *Pod) deregister(ctx context.Context) error {
	return deletePod(ctx, p.pods, p.spec.Name, p.uid)
}

func deletePod(ctx context.Context, pods kubeapi.Resource[corev1.Pod, corev1.PodList], name string, uid types.UID) error {
	now := int64(0)
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		err := pods.Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid}})
		switch {
		case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err): // gone, or another pod's name
			return nil
		case !kubeapi.Unreachable(err) || ctx.Err() != nil:
			return err
		}
		sleep(ctx, backoff)
	}
}

// record changes what `rutter ps` shows.
func (p *Pod) record(change func(*sandbox.Record)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.box.Record)
	if err := p.box.Save(); err != nil {
		p.log.Warn("saving the pod's record", "error", err)
	}
}

// RunProbe runs a probe's command in the pod.
func (p *Pod) RunProbe(ctx context.Context, argv []string) (int, string, error) {
	const keep = 10 << 10
	r, w, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, "", errors.Join(err, w.Close())
	}
	defer null.Close()
	child, err := p.box.Start(sandbox.Process{Argv: argv, Env: p.env, Dir: p.spec.Dir, User: p.spec.User, Files: [3]*os.File{null, w, w}})
	err = errors.Join(err, w.Close())
	if err != nil {
		return 0, "", fmt.Errorf("probe command: %w", err)
	}
	// The whole session, or a child that keeps the pipe open outlives it.
	stop := context.AfterFunc(ctx, func() {
		child.KillSession()
		_ = r.SetReadDeadline(time.Now())
	})
	defer stop()
	text, _ := io.ReadAll(io.LimitReader(r, keep))
	_, _ = io.Copy(io.Discard, r)
	return child.Wait().Code, string(text), nil
}

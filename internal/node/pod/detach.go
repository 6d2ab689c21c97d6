package pod

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/rutter-project/rutter/internal/kubeapi"
)

// Job is all that a supervisor in a process of its own has to know.
type Job struct {
	Spec       Spec
	RunDir     string
	Kubeconfig string
	NodeName   string
	PodCIDRs   []netip.Prefix
	ClusterDNS []string
	Zone       string
}

// Config opens the API for the job.
func (j Job) Config(log *slog.Logger, progress func(string)) (Config, error) {
	client, err := kubeapi.Open(j.Kubeconfig)
	if err != nil {
		return Config{}, err
	}
	return Config{
		Client: client, RunDir: j.RunDir, NodeName: j.NodeName, PodCIDRs: j.PodCIDRs, ClusterDNS: j.ClusterDNS, Zone: j.Zone,
		Log: log, Progress: progress,
	}, nil
}

// SuperviseCommand is the first argument with which Detach executes this very
// program; it must call Supervise then.
const SuperviseCommand = "supervise"

// reportFD is where a detached supervisor tells of its start, until the
// process runs or could not be made to.
const reportFD = 3

type report struct {
	Progress string `json:"progress,omitempty"`
	Name     string `json:"name,omitempty"` // it runs
	Error    string `json:"error,omitempty"`
	Code     int    `json:"code,omitempty"`
}

// Detach starts the job with a supervisor in the background and returns the
// pod's name once its process runs. The exit code belongs to the error.
func Detach(ctx context.Context, job Job, progress func(string)) (name string, exitCode int, err error) {
	if err := job.Spec.Complete(); err != nil {
		return "", 1, err
	}
	// The supervisor is not where the caller is.
	for _, path := range []*string{&job.RunDir, &job.Kubeconfig, &job.Spec.Dir} {
		if *path, err = filepath.Abs(*path); err != nil {
			return "", 1, err
		}
	}
	text, err := json.Marshal(job)
	if err != nil {
		return "", 1, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", 1, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	// The last word is for people who read ps.
	cmd.Args = []string{"rutter", SuperviseCommand, job.Spec.Namespace + "/" + job.Spec.Name}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	err = errors.Join(err, w.Close())
	if err != nil {
		return "", 1, fmt.Errorf("starting the supervisor: %w", err)
	}
	// Until it runs, it ends with the caller's patience; it takes everything
	// back then, so it is waited for.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if _, err := stdin.Write(text); err != nil {
		return "", 1, errors.Join(fmt.Errorf("starting the supervisor: %w", err), cmd.Wait())
	}
	_ = stdin.Close()
	lines := json.NewDecoder(bufio.NewReader(r))
	for {
		var rep report
		if err := lines.Decode(&rep); err != nil {
			return "", 1, fmt.Errorf("the supervisor ended early: %w", errors.Join(cmd.Wait(), ctx.Err()))
		}
		switch {
		case rep.Progress != "":
			progress(rep.Progress)
		case rep.Error != "":
			_ = cmd.Wait()
			return "", rep.Code, errors.New(rep.Error)
		default:
			return rep.Name, 0, cmd.Process.Release()
		}
	}
}

// Supervise is a detached supervisor: it reads its Job from standard input and
// runs it; ctx's end asks for the pod's.
func Supervise(ctx context.Context) error {
	out := os.NewFile(reportFD, "report")
	defer out.Close()
	syscall.CloseOnExec(reportFD)
	tell := func(r report) {
		if text, err := json.Marshal(r); err == nil {
			_, _ = out.Write(append(text, '\n'))
		}
	}
	exit, err := superviseJob(ctx, tell, out.Close)
	if err != nil {
		tell(report{Error: err.Error(), Code: exit.Code})
	}
	return err
}

func superviseJob(ctx context.Context, tell func(report), started func() error) (Exit, error) {
	var job Job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return Exit{Code: 1}, fmt.Errorf("reading the pod's specification: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Exit{Code: 1}, err
	}
	defer null.Close()
	var own lateWriter
	defer own.Close()
	cfg, err := job.Config(slog.New(slog.NewTextHandler(&own, nil)), func(line string) { tell(report{Progress: line}) })
	if err != nil {
		return Exit{Code: 1}, err
	}
	stdio := Stdio{Files: [3]*os.File{null, null, null}, Log: func(dir string) (io.WriteCloser, error) {
		if err := own.open(filepath.Join(dir, supervisorLog)); err != nil {
			return nil, err
		}
		return OpenLog(dir)
	}}
	return Run(ctx, cfg, job.Spec, stdio, func(p *Pod) {
		tell(report{Name: p.Name()})
		_ = started()
	})
}

// supervisorLog is the supervisor's own log in the pod's directory.
const supervisorLog = "supervisor.log"

// lateWriter is a log that begins when there is a directory for it.
type lateWriter struct {
	mu   sync.Mutex
	file *os.File
}

func (w *lateWriter) open(path string) (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	return err
}

func (w *lateWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return len(b), nil
	}
	return w.file.Write(b)
}

func (w *lateWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.file.Close() // which a nil file answers with an error
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/agent"
	"github.com/rutter-project/rutter/internal/kubeapi"
	"github.com/rutter-project/rutter/internal/node/pod"
	"github.com/rutter-project/rutter/internal/node/sandbox"
	"github.com/rutter-project/rutter/internal/node/terminal"
)

func newRunCommand() *cobra.Command {
	var (
		job                               job
		interactive, tty, detached, links bool
	)
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a process as a pod on this node",
		Long: `Runs COMMAND on this host as a pod: in a network namespace of its own, with an
address from the node's pod CIDR, cluster DNS in /etc/resolv.conf and the
services' environment variables, registered in the API so that services find it.
Files, users and everything else are the host's.

The exit code is the command's; 128 + N if signal N killed it.`,
		Example: `  rutter run -it --rm --name curl -- bash
  rutter run -d --name web-1 -l app=web --port http=80 --readiness http-get=/readyz:http -- ./server`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			job.Spec.NoServiceLinks = !links
			if err := job.complete(args); err != nil {
				return err
			}
			switch {
			case detached && (tty || interactive):
				return usageError{fmt.Errorf("-d has no terminal and no input: leave out -i and -t (see %s --help)", cmd.CommandPath())}
			case detached:
				return runDetached(cmd.Context(), job.Job, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return runForeground(cmd.Context(), job.Job, interactive, tty)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	job.register(f)
	f.BoolVar(&links, "enable-service-links", true, "set environment variables for all services of the namespace")
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&detached, "detach", "d", false, "run in the background; print the pod's name once it runs")
	return cmd
}

// newSuperviseCommand is what `rutter run -d` leaves running.
func newSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    pod.SuperviseCommand,
		Hidden: true,
		Args:   cobra.ArbitraryArgs, // for people who read ps
		RunE:   func(cmd *cobra.Command, _ []string) error { return pod.Supervise(cmd.Context()) },
	}
}

// newPauseCommand is the first process of each pod.
func newPauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    sandbox.PauseCommand,
		Hidden: true,
		Args:   cobra.ArbitraryArgs, // for people who read ps
		RunE:   func(*cobra.Command, []string) error { return sandbox.Pause() },
	}
}

func runDetached(ctx context.Context, job pod.Job, out, errOut io.Writer) error {
	name, code, err := pod.Detach(ctx, job, progressTo(errOut))
	if err != nil {
		return failed(errOut, err, code)
	}
	_, err = fmt.Fprintln(out, name)
	return err
}

func runForeground(parent context.Context, job pod.Job, interactive, tty bool) (err error) {
	stdio, session, err := openStdio(interactive, tty)
	if err != nil {
		return err
	}
	// The session's end is the last thing to happen, but for messages.
	closeSession := func() {
		if session != nil {
			_ = session.Close()
			session = nil
		}
	}
	defer closeSession()

	progress := progressTo(os.Stderr)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg, err := job.Config(log, progress)
	if err != nil {
		return err
	}
	// Signals are the process's once it runs; before that they end the start.
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	defer cancel()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	running := make(chan *pod.Pod, 1)
	go forward(ctx, signals, running, cancel)

	exit, err := pod.Run(ctx, cfg, job.Spec, stdio, func(p *pod.Pod) { running <- p })
	closeSession()
	if err != nil {
		return failed(os.Stderr, err, exit.Code)
	}
	if exit.Code != 0 {
		return exitError{exit.Code}
	}
	return nil
}

// forward passes signals on until ctx ends. The third request to end is not a
// request any more.
func forward(ctx context.Context, signals <-chan os.Signal, running <-chan *pod.Pod, cancel func()) {
	var p *pod.Pod
	asked := 0
	for {
		select {
		case <-ctx.Done():
			return
		case p = <-running:
		case sig := <-signals:
			if sig == unix.SIGINT || sig == unix.SIGTERM || sig == unix.SIGHUP {
				asked++
			}
			switch {
			case p == nil:
				cancel()
			case asked >= 3:
				p.Stop(0)
			default:
				p.Signal(sig)
			}
		}
	}
}

// openStdio makes what the process gets as standard input, output and error.
func openStdio(interactive, tty bool) (pod.Stdio, *terminal.Session, error) {
	if tty {
		s, err := terminal.Open(os.Stdin, os.Stdout, interactive)
		if err != nil {
			return pod.Stdio{}, nil, usageError{err}
		}
		return pod.Stdio{Files: [3]*os.File{s.Slave, s.Slave, s.Slave}, TTY: true}, s, nil
	}
	stdin := os.Stdin
	if !interactive {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return pod.Stdio{}, nil, err
		}
		stdin = null // for as long as this process lives
	}
	return pod.Stdio{Files: [3]*os.File{stdin, os.Stdout, os.Stderr}}, nil, nil
}

// failed reports an error that comes with an exit code of its own.
func failed(w io.Writer, err error, code int) error {
	if code <= exitFailed {
		return err
	}
	fmt.Fprintln(w, "rutter:", err)
	return exitError{code}
}

func progressTo(w io.Writer) func(string) {
	return func(line string) { fmt.Fprintln(w, "rutter:", line) }
}

// onThisNode are the flags of all commands that deal with this node's pods.
type onThisNode struct{ runDir, namespace string }

func (o *onThisNode) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.runDir, "run-dir", agent.DefaultRunDir, "directory for sockets, locks and the state of pods")
	cmd.Flags().StringVarP(&o.namespace, "namespace", "n", "default", "namespace of the pod")
}

func (o *onThisNode) find(arg string) (sandbox.Entry, error) {
	return pod.Find(o.runDir, o.namespace, strings.TrimPrefix(arg, "pod/"))
}

func (o *onThisNode) client(kubeconfig string) func() (*kubeapi.Client, error) {
	return func() (*kubeapi.Client, error) { return kubeapi.Open(kubeapi.Path(kubeconfig, o.runDir)) }
}

package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/rutter-project/rutter/internal/node/pod"
)

func newExecCommand() *cobra.Command {
	var (
		node             onThisNode
		interactive, tty bool
		env              []string
		dir              string
	)
	cmd := &cobra.Command{
		Use:     "exec [flags] POD -- COMMAND [ARG...]",
		Short:   "Run a command in a pod of this node",
		Long:    "Runs COMMAND in the namespaces of a running pod and with its environment. The exit code is the command's.",
		Example: `  rutter exec -it web-1 -- bash`,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && args[1] == "--" {
				args = append(args[:1:1], args[2:]...)
			}
			if len(args) < 2 {
				return usageError{fmt.Errorf("name a pod and a command: %s", cmd.UseLine())}
			}
			vars, err := parseEnv(env)
			if err != nil {
				return usageError{err}
			}
			e, err := node.find(args[0])
			if err != nil {
				return err
			}
			stdio, session, err := openStdio(interactive, tty)
			if err != nil {
				return err
			}
			if tty {
				vars = append([]string{"TERM=" + os.Getenv("TERM")}, vars...)
			}
			signals := make(chan os.Signal, 8)
			signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
			defer signal.Stop(signals)
			code, err := pod.Exec(context.WithoutCancel(cmd.Context()), e, pod.Command{Argv: args[1:], Env: vars, Dir: dir, Files: stdio.Files, TTY: tty}, signals)
			if session != nil {
				_ = session.Close()
			}
			if err != nil {
				return failed(cmd.ErrOrStderr(), err, code)
			}
			if code != 0 {
				return exitError{code}
			}
			return nil
		},
	}
	node.register(cmd)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&env, "env", "e", nil, "environment variable, as NAME=VALUE, or NAME to take the caller's")
	f.StringVarP(&dir, "workdir", "w", "", "working directory (default the pod's)")
	return cmd
}

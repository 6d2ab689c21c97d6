package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/rutter-project/rutter/internal/rootless"
)

// nodeCommands deal with the running system of this host or, for an ordinary
// user, of `rutter up --rootless`.
var nodeCommands = []string{"run", "ps", "exec", "logs", "stop", "status", "explain", "shell"}

// findRootless makes an ordinary user's command one of the user's running
// instance: it enters the namespaces, or is told the run directory. Who named
// one knows what to do.
func findRootless(args []string) ([]string, error) {
	if rootless.Inside() {
		rootless.Entered()
		return args, nil
	}
	named := slices.ContainsFunc(args, func(a string) bool { return a == "--run-dir" || len(a) > 10 && a[:10] == "--run-dir=" })
	if len(args) == 0 || os.Geteuid() == 0 || !slices.Contains(nodeCommands, args[0]) || named ||
		slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return args, nil
	}
	i, ok, err := rootless.Find()
	switch {
	case err != nil || !ok:
		return args, err
	case i.Mode == rootless.Namespaces:
		return args, i.Enter()
	case args[0] == "shell":
		return args, nil
	}
	return slices.Insert(slices.Clone(args), 1, "--run-dir", i.RunDir), nil
}

// newRootlessInitCommand is the first process of an instance's namespaces.
func newRootlessInitCommand() *cobra.Command {
	return &cobra.Command{
		Use:                rootless.InitCommand,
		Hidden:             true,
		DisableFlagParsing: true, // the arguments are another command's
		RunE: func(_ *cobra.Command, args []string) error {
			code, err := rootless.Init(args)
			if err == nil && code != 0 {
				err = exitError{code}
			}
			return err
		},
	}
}

func newShellCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "shell [-- COMMAND [ARG...]]",
		Short: "A shell in your running `rutter up --rootless`",
		Long: `Starts your shell, or COMMAND, where your running ` + "`rutter up --rootless`" + ` is: service
addresses work there, names are found by the cluster's DNS, and KUBECONFIG leads
to its API server. The exit code is the command's.`,
		Example: `  rutter shell
  rutter shell -- curl -s http://web/`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			i, ok, err := rootless.Find()
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("no `rutter up --rootless` of yours is running: start it in another terminal (as root, services work in any shell)")
			}
			return i.Shell(args)
		},
	}
}

// rootlessFlag is --rootless[=MODE].
type rootlessFlag struct{ mode rootless.Mode }

func (f *rootlessFlag) String() string { return string(f.mode) }
func (f *rootlessFlag) Type() string   { return "mode" }

func (f *rootlessFlag) Set(s string) error {
	switch m := rootless.Mode(s); m {
	case rootless.Auto, rootless.Namespaces, rootless.Userspace:
		f.mode = m
		return nil
	}
	return fmt.Errorf("%q is none of auto, namespaces, userspace", s)
}

// inNamespaces runs this very command in namespaces of its own.
func inNamespaces(ctx context.Context, i rootless.Instance) error {
	code, err := rootless.Run(ctx, i, os.Args[1:])
	if err == nil && code != 0 {
		err = exitError{code}
	}
	return err
}

// Command rutter is service discovery and load balancing for Linux hosts, with
// or without Kubernetes. Each command has a file of its own in this folder;
// what they do lives in internal/.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes: 0 done, 1 it failed, 2 it was asked wrongly. `rutter run` and
// `rutter exec` exit with their process's code instead.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError marks an error of the command line itself.
type usageError struct{ error }

// exitError carries the exit code of a process that rutter ran; nothing is
// printed for it.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func main() {
	// The first signal asks for an orderly end; after it the default action is
	// back, so a second one ends at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	args, err := findRootless(os.Args[1:])
	if err == nil {
		root := newRootCommand()
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	stop()
	os.Exit(report(err))
}

func report(err error) int {
	var usage usageError
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	for line := range strings.Lines(err.Error()) { // joined errors have one each
		fmt.Fprintln(os.Stderr, "rutter:", strings.TrimSuffix(line, "\n"))
	}
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// noArgs is cobra.NoArgs with our exit code and words.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q (see %[1]s --help)", cmd.CommandPath(), args)}
	}
	return nil
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "rutter",
		Short:         "Service discovery and load balancing for Linux hosts, with or without Kubernetes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", near[0])
			}
			return usageError{fmt.Errorf("unknown command %q%s (rutter --help lists them)", args[0], hint)}
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
	})
	root.AddCommand(
		newUpCommand(),
		newRunCommand(),
		newPsCommand(),
		newExecCommand(),
		newLogsCommand(),
		newStopCommand(),
		newStatusCommand(),
		newShellCommand(),
		newAgentCommand(),
		newDNSCommand(),
		newProxyCommand(),
		newCheckCommand(),
		newVersionCommand(),
		// Hidden: what rutter runs of itself.
		newSuperviseCommand(),
		newPauseCommand(),
		newDemoServerCommand(),
		newRootlessInitCommand(),
		newRelayCommand(),
	)
	return root
}

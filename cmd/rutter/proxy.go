package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/rutter-project/rutter/internal/proxy"
	"github.com/rutter-project/rutter/internal/proxy/config"
	"github.com/rutter-project/rutter/internal/proxy/standalone"
	"github.com/rutter-project/rutter/internal/version"
)

func newProxyCommand() *cobra.Command {
	var f config.Flags
	var noCounters, countBytes bool
	cmd := &cobra.Command{
		Use:   "proxy [--config FILE]",
		Short: "Program service addresses alone, in the place of kube-proxy",
		Long: `Program service addresses by a KubeProxyConfiguration, with kube-proxy's flags: a
pod or unit file that starts kube-proxy works with the binary replaced. Without
a mode it takes the best that this host can do, nftables first.

It needs CAP_NET_ADMIN. On SIGTERM it ends and leaves the service addresses
working. A change of the configuration file's mode is made by the process that
runs, and breaks no connection. What kube-proxy left is removed once everything
is in place.

--cleanup removes what the proxy put into the kernel, in whatever mode, and what
kube-proxy did. To go back to kube-proxy without a gap, start kube-proxy first
and then run rutter proxy --cleanup --proxy-mode nftables: with a mode, only
that mode's rules and those under Rutter's own names go.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Version {
				fmt.Fprintln(cmd.OutOrStdout(), "Rutter", version.Get().Version)
				return nil
			}
			if f.Cleanup && f.Config.Mode != "" {
				return proxy.Cleanup(f.Config.Mode)
			}
			if f.Cleanup {
				return proxy.Cleanup()
			}
			c, warnings, err := f.Resolve()
			if err != nil {
				return usageError{err}
			}
			log := proxyLogger(cmd, c)
			for _, w := range warnings {
				log.Warn(w)
			}
			if f.WriteConfigTo != "" {
				return writeConfig(c, f.WriteConfigTo)
			}
			o := standalone.Options{Config: c, File: f.File, Load: f.Resolve, Master: f.Master, Version: version.Get().Version, Log: log,
				NoCounters: noCounters, CountBytes: countBytes,
				Flags: func() (list []string) {
					cmd.Flags().VisitAll(func(f *pflag.Flag) { list = append(list, f.Name+"="+f.Value.String()) })
					return list
				}}
			if f.InitOnly {
				standalone.Init(o)
				return nil
			}
			return standalone.Run(cmd.Context(), o)
		},
	}
	f.Register(cmd.Flags())
	registerCounters(cmd.Flags(), &noCounters, &countBytes)
	return cmd
}

// proxyLogger logs as the logging block says: kube-proxy's verbosity 4 is where
// its debugging begins.
func proxyLogger(cmd *cobra.Command, c *config.Config) *slog.Logger {
	o := &slog.HandlerOptions{}
	if c.Logging.Verbosity >= 4 {
		o.Level = slog.LevelDebug
	}
	var h slog.Handler = slog.NewTextHandler(cmd.ErrOrStderr(), o)
	if c.Logging.Format == "json" {
		h = slog.NewJSONHandler(cmd.ErrOrStderr(), o)
	}
	log := slog.New(h)
	klog.SetSlogLogger(log)
	return log
}

func writeConfig(c *config.Config, path string) error {
	text, err := c.Marshal()
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

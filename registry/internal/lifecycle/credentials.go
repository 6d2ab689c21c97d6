package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/rutter-project/rutter/registry/internal/config"
	"github.com/rutter-project/rutter/registry/internal/datadir"
	"github.com/rutter-project/rutter/registry/internal/kubeconfig"
	"github.com/rutter-project/rutter/registry/internal/pki"
)

// credentials are the certificates and the kubeconfigs made of them.
type credentials struct {
	authority *pki.Authority
	dir       *datadir.Dir
	c         config.Config
}

// ensure brings both up to date. The kubeconfigs are always written anew: the
// port or an address may have changed.
func (cr *credentials) ensure(log *slog.Logger) error {
	changes, err := cr.authority.Ensure(time.Now())
	if err != nil {
		return err
	}
	for _, ch := range changes {
		log.Debug("certificate issued", "name", ch.Name, "because", ch.Why)
	}
	agentHost := cr.c.LocalHost()
	if cr.c.Routable {
		agentHost = cr.c.Advertise // the agent's file is carried to other hosts
	}
	for _, k := range []struct{ name, user, path, server string }{
		{"admin", pki.AdminUser, cr.dir.AdminKubeconfig(), hostPort(cr.c.LocalHost(), cr.c.Port)},
		{"agent", pki.AgentUser, cr.dir.AgentKubeconfig(), hostPort(agentHost, cr.c.Port)},
	} {
		cert, key, ca, err := cr.authority.Pair(k.name)
		if err != nil {
			return err
		}
		if err := kubeconfig.Write(k.path, kubeconfig.Access{Server: "https://" + k.server, CA: ca, User: k.user, Cert: cert, Key: key}); err != nil {
			return err
		}
	}
	return nil
}

// Renewal is looked after at least daily, so that a clock that was set, or
// files that were replaced by hand, are noticed; and a failure is tried again.
const (
	lookAtLeast = 24 * time.Hour
	lookAgain   = 10 * time.Minute
)

// renewForEver renews certificates before they expire. The API server follows
// the files; clients read their kubeconfig again when they start.
func (cr *credentials) renewForEver(ctx context.Context, log *slog.Logger) error {
	for {
		wait := lookAtLeast
		if due, err := cr.authority.Due(); err != nil {
			log.Error("looking at the certificates", "error", err, "again in", lookAgain)
			wait = lookAgain
		} else if d := time.Until(due); d < wait {
			wait = max(d, time.Second)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		if err := cr.ensure(log); err != nil {
			log.Error(fmt.Sprintf("renewing certificates; trying again in %v", lookAgain), "error", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(lookAgain):
			}
		}
	}
}

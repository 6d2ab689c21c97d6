// Package order is the life of a query: every plugin, in the order in which
// queries meet them, whatever the order in the Corefile.
package order

import (
	"github.com/rutter-project/rutter/internal/dns/plugin"
	"github.com/rutter-project/rutter/internal/dns/plugin/acl"
	"github.com/rutter-project/rutter/internal/dns/plugin/any"
	"github.com/rutter-project/rutter/internal/dns/plugin/auto"
	"github.com/rutter-project/rutter/internal/dns/plugin/autopath"
	"github.com/rutter-project/rutter/internal/dns/plugin/bind"
	"github.com/rutter-project/rutter/internal/dns/plugin/bufsize"
	"github.com/rutter-project/rutter/internal/dns/plugin/cache"
	"github.com/rutter-project/rutter/internal/dns/plugin/cancel"
	"github.com/rutter-project/rutter/internal/dns/plugin/chaos"
	"github.com/rutter-project/rutter/internal/dns/plugin/debug"
	"github.com/rutter-project/rutter/internal/dns/plugin/dns64"
	"github.com/rutter-project/rutter/internal/dns/plugin/erratic"
	"github.com/rutter-project/rutter/internal/dns/plugin/errors"
	"github.com/rutter-project/rutter/internal/dns/plugin/etcd"
	"github.com/rutter-project/rutter/internal/dns/plugin/file"
	"github.com/rutter-project/rutter/internal/dns/plugin/forward"
	"github.com/rutter-project/rutter/internal/dns/plugin/header"
	"github.com/rutter-project/rutter/internal/dns/plugin/health"
	"github.com/rutter-project/rutter/internal/dns/plugin/hosts"
	external "github.com/rutter-project/rutter/internal/dns/plugin/k8s_external"
	"github.com/rutter-project/rutter/internal/dns/plugin/kubernetes"
	"github.com/rutter-project/rutter/internal/dns/plugin/loadbalance"
	localnames "github.com/rutter-project/rutter/internal/dns/plugin/local"
	"github.com/rutter-project/rutter/internal/dns/plugin/log"
	"github.com/rutter-project/rutter/internal/dns/plugin/loop"
	"github.com/rutter-project/rutter/internal/dns/plugin/metadata"
	"github.com/rutter-project/rutter/internal/dns/plugin/minimal"
	"github.com/rutter-project/rutter/internal/dns/plugin/multisocket"
	"github.com/rutter-project/rutter/internal/dns/plugin/nsid"
	"github.com/rutter-project/rutter/internal/dns/plugin/pprof"
	"github.com/rutter-project/rutter/internal/dns/plugin/prometheus"
	"github.com/rutter-project/rutter/internal/dns/plugin/ready"
	"github.com/rutter-project/rutter/internal/dns/plugin/reload"
	"github.com/rutter-project/rutter/internal/dns/plugin/rewrite"
	"github.com/rutter-project/rutter/internal/dns/plugin/root"
	"github.com/rutter-project/rutter/internal/dns/plugin/template"
	"github.com/rutter-project/rutter/internal/dns/plugin/timeouts"
	"github.com/rutter-project/rutter/internal/dns/plugin/view"
	"github.com/rutter-project/rutter/internal/dns/plugin/whoami"
)

// List returns the plugins in CoreDNS 1.14.7's order. A nil setup is a plugin
// that CoreDNS has and Rutter lacks; it is listed so that a Corefile that uses
// it is told so. The third column is what the plugin may do to a query.
//
// Stores says where the plugins for Kubernetes get their data from. A list that
// is only for checking a Corefile needs none.
func List(stores kubernetes.Stores) []plugin.Entry {
	const (
		configures = plugin.Configures
		observes   = plugin.Observes
		changes    = plugin.Changes
		answers    = plugin.Answers
		local      = plugin.Local
	)
	type line struct {
		name   string
		setup  plugin.Setup
		effect plugin.Effect
	}
	lines := []line{
		{"root", root.Setup, configures},
		{"metadata", metadata.Setup, observes},
		{"geoip", nil, observes},
		{"cancel", cancel.Setup, observes},
		{"proxyproto", nil, configures},
		{"quic", nil, configures},
		{"grpc_server", nil, configures},
		{"https", nil, configures},
		{"https3", nil, configures},
		{"timeouts", timeouts.Setup, configures},
		{"multisocket", multisocket.Setup, configures},
		{"reload", reload.Setup, configures},
		{"nsid", nsid.Setup, changes},
		{"bufsize", bufsize.Setup, changes},
		{"bind", bind.Setup, configures},
		{"debug", debug.Setup, configures},
		{"trace", nil, observes},
		{"ready", ready.Setup, configures},
		{"health", health.Setup, configures},
		{"pprof", pprof.Setup, configures},
		{"shed", nil, configures},
		{"prometheus", prometheus.Setup, observes},
		{"errors", errors.Setup, observes},
		{"log", log.Setup, observes},
		{"dnstap", nil, observes},
		{"local", localnames.Setup, local},
		{"dns64", dns64.Setup, changes},
		{"any", any.Setup, local},
		{"chaos", chaos.Setup, local},
		{"loadbalance", loadbalance.Setup, changes},
		{"tsig", nil, changes},
		{"rewrite", rewrite.Setup, changes},
		{"autopath", autopath.Setup, changes},
		{"acl", acl.Setup, changes},
		{"cache", cache.Setup, answers},
		{"header", header.Setup, changes},
		{"dnssec", nil, changes},
		{"tls", nil, configures},
		{"minimal", minimal.Setup, changes},
		{"template", template.Setup, local},
		{"transfer", nil, local},
		{"hosts", hosts.Setup, local},
		{"route53", nil, answers},
		{"azure", nil, answers},
		{"clouddns", nil, answers},
		{"k8s_external", external.Setup, local},
		{"kubernetes", kubernetes.Setup(stores), local},
		{"file", file.Setup, local},
		{"auto", auto.Setup, local},
		{"secondary", nil, local},
		{"etcd", etcd.Setup, answers},
		{"loop", loop.Setup, configures},
		{"forward", forward.Setup, answers},
		{"grpc", nil, answers},
		{"erratic", erratic.Setup, answers},
		{"whoami", whoami.Setup, answers},
		{"on", nil, configures},
		{"sign", nil, configures},
		{"view", view.Setup, configures},
		{"nomad", nil, answers},
	}
	entries := make([]plugin.Entry, len(lines))
	for i, l := range lines {
		entries[i] = plugin.Entry{Name: l.name, Setup: l.setup, Effect: l.effect}
	}
	return entries
}

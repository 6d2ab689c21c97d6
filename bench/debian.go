package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rutter-project/rutter/conformance/peer"
)

// debianServer is a name server of Debian's, given the cluster's records as a
// static file: how fast servers are that need not follow changes.
type debianServer struct {
	name    string
	program string
	sets    []string
	// conf is its configuration; {DIR}, {PORT}, {UPIP} and {UPPORT} are filled.
	conf  string
	args  []string // {CONF} is the configuration file
	files func(dir string, services int) error
}

var (
	authoritative = []string{"A, cluster IP", "A, headless × 10", "SRV, headless × 10", "NXDOMAIN", "mix"}
	caching       = append(authoritative[:len(authoritative):len(authoritative)], "A, forwarded and cached")
)

var debianServers = []debianServer{
	{name: "Knot DNS", program: "knotd", sets: authoritative, files: writeZone, args: []string{"-c", "{CONF}"}, conf: `
server:
    listen: 127.0.0.1@{PORT}
    rundir: {DIR}
    udp-workers: 2
database:
    storage: {DIR}/knot
log:
  - target: stderr
    any: warning
zone:
  - domain: cluster.local
    file: {DIR}/cluster.local.zone
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
`},
	{name: "Unbound", program: "unbound", sets: caching, files: writeZone, args: []string{"-d", "-p", "-c", "{CONF}"}, conf: `
server:
    interface: 127.0.0.1
    port: {PORT}
    num-threads: 2
    so-reuseport: yes
    do-daemonize: no
    do-not-query-localhost: no
    chroot: ""
    username: ""
    directory: "{DIR}"
    pidfile: ""
    use-syslog: no
    module-config: "iterator"
    local-zone: "test." nodefault
auth-zone:
    name: "cluster.local"
    zonefile: "{DIR}/cluster.local.zone"
    for-upstream: no
    for-downstream: yes
forward-zone:
    name: "example.test"
    forward-addr: {UPIP}@{UPPORT}
remote-control:
    control-enable: no
`},
	{name: "dnsmasq", program: "dnsmasq", sets: caching, files: writeHosts, args: []string{"-k", "-C", "{CONF}"}, conf: `
port={PORT}
listen-address=127.0.0.1
bind-interfaces
no-resolv
no-hosts
cache-size=10000
local=/cluster.local/
addn-hosts={DIR}/dnsmasq.hosts
conf-file={DIR}/dnsmasq.srv
server=/example.test/{UPIP}#{UPPORT}
local-ttl=30
user=root
pid-file={DIR}/dnsmasq.pid
`},
}

func (d *debianServer) missing() bool {
	_, err := exec.LookPath(d.program)
	return err != nil
}

func (d *debianServer) start(dir string, services int, upstream string) (*peer.Nameserver, error) {
	port, err := peer.Port()
	if err != nil {
		return nil, err
	}
	host, upPort, err := net.SplitHostPort(upstream)
	if err != nil {
		return nil, err
	}
	if err := d.files(dir, services); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, d.program+".conf")
	fill := strings.NewReplacer("{DIR}", dir, "{PORT}", fmt.Sprint(port), "{UPIP}", host, "{UPPORT}", upPort, "{CONF}", conf)
	if err := os.WriteFile(conf, []byte(fill.Replace(d.conf)), 0o644); err != nil {
		return nil, err
	}
	args := []string{d.program}
	for _, a := range d.args {
		args = append(args, fill.Replace(a))
	}
	p, err := peer.Start(peer.Command{Name: d.program, Dir: dir, Args: args})
	if err != nil {
		return nil, err
	}
	return &peer.Nameserver{Process: p, Addr: fmt.Sprintf("127.0.0.1:%d", port)}, nil
}

// writeZone writes the cluster as a zone file.
func writeZone(dir string, services int) error {
	if err := os.MkdirAll(filepath.Join(dir, "knot"), 0o755); err != nil {
		return err
	}
	var z strings.Builder
	z.WriteString("$ORIGIN cluster.local.\n$TTL 30\n@ SOA ns.dns hostmaster 1 7200 1800 86400 30\n@ NS ns.dns\nns.dns A 10.96.0.10\n")
	for i := range service(services) {
		if !i.tenth() {
			fmt.Fprintf(&z, "%s A %s\n_http._tcp.%[1]s SRV 0 100 80 %[1]s\n", i.fqdn(), i.clusterIP())
			continue
		}
		for k := range endpointsPerService {
			a := i.endpoint(k, endpointsPerService)
			name := strings.ReplaceAll(a.String(), ".", "-") + "." + i.fqdn()
			fmt.Fprintf(&z, "%s A %s\n_http._tcp.%[1]s SRV 0 10 8080 %[3]s\n%[3]s A %[2]s\n", i.fqdn(), a, name)
		}
	}
	return os.WriteFile(filepath.Join(dir, "cluster.local.zone"), []byte(z.String()), 0o644)
}

// writeHosts writes the cluster as dnsmasq wants it.
func writeHosts(dir string, services int) error {
	var hosts, srv strings.Builder
	for i := range service(services) {
		name := strings.TrimSuffix(i.fqdn(), ".")
		if !i.tenth() {
			fmt.Fprintf(&hosts, "%s %s\n", i.clusterIP(), name)
			continue
		}
		for k := range endpointsPerService {
			a := i.endpoint(k, endpointsPerService)
			target := strings.ReplaceAll(a.String(), ".", "-") + "." + name
			fmt.Fprintf(&hosts, "%s %s\n%[1]s %[3]s\n", a, name, target)
			fmt.Fprintf(&srv, "srv-host=_http._tcp.%s,%s,8080,0,10\n", name, target)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "dnsmasq.hosts"), []byte(hosts.String()), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "dnsmasq.srv"), []byte(srv.String()), 0o644)
}

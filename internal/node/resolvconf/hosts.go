package resolvconf

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxHostname is the kernel's limit for a node name less one: what the kubelet
// cuts a host name to.
const maxHostname = 63

// Hostname is a pod's host name: spec.hostname, else the pod's name, cut to
// what the kernel takes.
func Hostname(hostname, pod string) string {
	if hostname == "" {
		hostname = pod
	}
	if len(hostname) > maxHostname {
		hostname = strings.TrimRight(hostname[:maxHostname], "-.")
	}
	return hostname
}

// Domain is the domain part of a pod's full name. It is empty without a
// subdomain: such a pod has no full name.
func Domain(subdomain, namespace, zone string) string {
	if subdomain == "" {
		return ""
	}
	return fmt.Sprintf("%s.%s.svc.%s", subdomain, namespace, zone)
}

// Hosts is the text of a pod's /etc/hosts.
func Hosts(addrs []netip.Addr, hostname, domain string) string {
	var b strings.Builder
	b.WriteString(`# Made by rutter for this pod.
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
fe00::0	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`)
	for _, a := range addrs {
		if domain == "" {
			fmt.Fprintf(&b, "%s\t%s\n", a, hostname)
			continue
		}
		fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", a, hostname, domain, hostname)
	}
	return b.String()
}

// NSSwitch returns the host's nsswitch.conf with host names looked up in
// /etc/hosts and then by DNS only: modules such as nss-resolve and nss-mdns
// ask daemons of the host, which know nothing of the cluster's names. Without
// a hosts line, text comes back as it is; that is what glibc defaults to.
func NSSwitch(text string) string {
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		database, _, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(database) == "hosts" {
			lines[i] = "hosts: files dns\n"
		}
	}
	return strings.Join(lines, "")
}

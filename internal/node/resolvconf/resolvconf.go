// Package resolvconf decides what a pod's /etc/resolv.conf says: the base its
// DNS policy asks for, its own DNS settings merged into that, and the limits.
// The rules are the kubelet's (pkg/kubelet/network/dns of Kubernetes v1.36).
package resolvconf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Config is what a resolv.conf says. An option is `name` or `name:value`.
type Config struct {
	Nameservers []string
	Searches    []string
	Options     []string
}

// Policy is a pod's spec.dnsPolicy.
type Policy string

const (
	ClusterFirst            Policy = "ClusterFirst"
	ClusterFirstWithHostNet Policy = "ClusterFirstWithHostNet"
	Default                 Policy = "Default"
	None                    Policy = "None"
)

// The limits of a file after merging. Entries over 253 characters made glibc
// 2.28 abort; the rest are the API's (pkg/apis/core/validation).
const (
	MaxNameservers    = 3
	MaxSearches       = 32
	MaxSearchLength   = 253
	MaxSearchListSize = 2048
)

// muslLineSize is the longest line musl reads; it drops a longer one whole,
// so all searches at once.
const muslLineSize = 256

// Request is what is known about one pod and its node.
type Request struct {
	Policy     Policy
	Namespace  string
	Zone       string   // the cluster domain, no trailing dot; may be empty
	ClusterDNS []string // addresses, in the order to be written
	Host       Config   // the host's file, see ReadHost
	Extra      Config   // the pod's dnsConfig
}

// Build makes the pod's configuration. The notes name what was cut or fell
// back, one sentence each; they are for the pod's events and are never errors,
// because the pod starts anyway.
func Build(r Request) (Config, []string) {
	c, notes := base(r)
	c.Nameservers = unique(append(slices.Clone(c.Nameservers), r.Extra.Nameservers...))
	c.Searches = unique(append(slices.Clone(c.Searches), r.Extra.Searches...))
	c.Options = slices.Clone(c.Options)
	for _, o := range r.Extra.Options {
		c.setOption(o)
	}
	// The kubelet's order is that of a Go map; sorted, two runs agree.
	slices.SortFunc(c.Options, func(a, b string) int { return cmp.Compare(optionName(a), optionName(b)) })
	c, cut := limit(c)
	return c, append(notes, cut...)
}

func base(r Request) (Config, []string) {
	switch r.Policy {
	case None:
		return Config{}, nil
	case Default:
		return r.Host, nil
	}
	// Anything else is treated as ClusterFirst, as the kubelet does.
	if len(r.ClusterDNS) == 0 {
		return r.Host, []string{"no cluster DNS address is known: using the host's resolver configuration instead of " + string(ClusterFirst)}
	}
	c := Config{Nameservers: r.ClusterDNS, Options: []string{"ndots:5"}}
	if r.Zone != "" {
		c.Searches = []string{r.Namespace + ".svc." + r.Zone, "svc." + r.Zone, r.Zone}
	}
	c.Searches = append(c.Searches, r.Host.Searches...)
	return c, nil
}

// limit cuts in the kubelet's order: counts, then overlong entries, then the
// joined length.
func limit(c Config) (Config, []string) {
	var notes []string
	if n := len(c.Nameservers); n > MaxNameservers {
		c.Nameservers = c.Nameservers[:MaxNameservers]
		notes = append(notes, fmt.Sprintf("%d nameservers are more than %d: kept %s", n, MaxNameservers, strings.Join(c.Nameservers, " ")))
	}
	if n := len(c.Searches); n > MaxSearches {
		c.Searches = c.Searches[:MaxSearches]
		notes = append(notes, fmt.Sprintf("%d search domains are more than %d: the last %d were left out", n, MaxSearches, n-MaxSearches))
	}
	kept, size := []string(nil), 0
	full := false
	for _, s := range c.Searches {
		switch {
		case len(s) > MaxSearchLength:
			notes = append(notes, fmt.Sprintf("search domain %.20s… has more than %d characters: left out", s, MaxSearchLength))
		case full || size+len(s) > MaxSearchListSize:
			full = true
			notes = append(notes, fmt.Sprintf("search domain %s does not fit into %d characters: left out", s, MaxSearchListSize))
		default:
			kept = append(kept, s)
			size += len(s) + len(" ")
		}
	}
	c.Searches = kept
	if n := len("search ") + size; n > muslLineSize {
		notes = append(notes, fmt.Sprintf("the search line has %d characters; programs linked with musl ignore lines over %d and will search nowhere", n-1, muslLineSize))
	}
	return c, notes
}

// Append appends the file's text to b. Empty parts are left out.
func (c Config) Append(b []byte) []byte {
	if len(c.Searches) > 0 {
		b = append(b, "search "+strings.Join(c.Searches, " ")+"\n"...)
	}
	for _, s := range c.Nameservers {
		b = append(b, "nameserver "+s+"\n"...)
	}
	if len(c.Options) > 0 {
		b = append(b, "options "+strings.Join(c.Options, " ")+"\n"...)
	}
	return b
}

func (c Config) String() string { return string(c.Append(nil)) }

// setOption adds an option, or replaces the one of the same name.
func (c *Config) setOption(o string) {
	name, value, _ := strings.Cut(o, ":")
	if name == "" {
		return
	}
	if value == "" {
		o = name // an empty value is written as no value
	}
	i := slices.IndexFunc(c.Options, func(have string) bool { return optionName(have) == name })
	if i < 0 {
		c.Options = append(c.Options, o)
		return
	}
	c.Options[i] = o
}

func optionName(o string) string {
	name, _, _ := strings.Cut(o, ":")
	return name
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

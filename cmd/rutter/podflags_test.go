package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
)

// parseRun reads the flags of `rutter run`, up to the command.
func parseRun(t *testing.T, line string) (*job, error) {
	t.Helper()
	var j job
	f := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.SetInterspersed(false)
	j.register(f)
	if err := f.Parse(strings.Fields(line)); err != nil {
		t.Fatal(err)
	}
	return &j, j.complete(f.Args())
}

func TestRunFlags(t *testing.T) {
	t.Setenv("RUTTER_TEST_SET", "here")
	for _, c := range []struct {
		line string
		what func(*job) any
		want string
	}{
		{"true", func(j *job) any { return j.Spec.Namespace + " " + string(j.Spec.DNSPolicy) }, "default ClusterFirst"},
		{"sh -c --name=x", func(j *job) any { return j.Spec.Command }, "[sh -c --name=x]"},
		{"-- sh -c x", func(j *job) any { return j.Spec.Command }, "[sh -c x]"},
		{"-n shop --name web-0 --hostname web-0 --subdomain web true", func(j *job) any {
			return strings.Join([]string{j.Spec.Namespace, j.Spec.Name, j.Spec.Hostname, j.Spec.Subdomain}, " ")
		}, "shop web-0 web-0 web"},
		{"/usr/bin/My_Server", func(j *job) any { return strings.HasPrefix(j.Spec.Name, "my-server-") }, "true"},
		{"-l app=web -l a=1,b= true", func(j *job) any { return j.Spec.Labels }, "map[a:1 app:web b:]"},
		{"--port 80 --port http=8080 --port dns=53/udp true", func(j *job) any {
			var out []string
			for _, p := range j.Spec.Ports {
				out = append(out, fmt.Sprintf("%s:%d/%s", p.Name, p.ContainerPort, p.Protocol))
			}
			return out
		}, "[:80/TCP http:8080/TCP dns:53/UDP]"},
		{"-e A=b=c -e RUTTER_TEST_SET -e RUTTER_TEST_UNSET -e EMPTY= true", func(j *job) any { return j.Spec.Env }, "[A=b=c RUTTER_TEST_SET=here EMPTY=]"},
		{"--readiness http-get=/readyz?full=1:http true", func(j *job) any {
			g := j.Spec.Readiness.HTTPGet
			return g.Path + " " + g.Port.String() + " " + string(g.Scheme)
		}, "/readyz?full=1 http HTTP"},
		{"--readiness https-get=:8443 true", func(j *job) any {
			g := j.Spec.Readiness.HTTPGet
			return g.Path + " " + g.Port.String() + " " + string(g.Scheme)
		}, "/ 8443 HTTPS"},
		{"--readiness tcp=:5432 --readiness-period 2s --readiness-timeout 3s --readiness-initial-delay 4s --readiness-success-threshold 5 --readiness-failure-threshold 6 true", func(j *job) any {
			p := j.Spec.Readiness
			return fmt.Sprint(p.TCPSocket.Port.IntValue(), p.PeriodSeconds, p.TimeoutSeconds, p.InitialDelaySeconds, p.SuccessThreshold, p.FailureThreshold)
		}, "5432 2 3 4 5 6"},
		{"--readiness exec=pg_isready true", func(j *job) any { return j.Spec.Readiness.Exec.Command }, "[/bin/sh -c pg_isready]"},
		{"--dns 1.1.1.1 --dns-search a.example,b.example --dns-option ndots:2 --dns-option use-vc true", func(j *job) any {
			c := j.Spec.DNSConfig
			return fmt.Sprint(c.Nameservers, c.Searches, c.Options[0].Name, *c.Options[0].Value, c.Options[1].Name, c.Options[1].Value == nil)
		}, "[1.1.1.1] [a.example b.example]ndots2use-vctrue"},
		{"--dns-policy Default true", func(j *job) any { return fmt.Sprint(j.Spec.DNSPolicy == corev1.DNSDefault, j.Spec.DNSConfig == nil) }, "true true"},
		{"--pod-cidr 10.1.0.9/24,fd00::/64 true", func(j *job) any { return j.PodCIDRs }, "[10.1.0.0/24 fd00::/64]"},
		{"--user nobody true", func(j *job) any {
			return fmt.Sprint(j.Spec.User.UID, " ", j.Spec.User.GID, " ", j.Spec.Env[1:])
		}, "65534 65534 [USER=nobody LOGNAME=nobody]"},
		{"--user 0:12345 -e HOME=/x true", func(j *job) any {
			return fmt.Sprint(j.Spec.User.UID, " ", j.Spec.User.GID, " ", j.Spec.User.Groups, " ", j.Spec.Env)
		}, "0 12345 [] [HOME=/root USER=root LOGNAME=root HOME=/x]"},
		{"--user 4000000000 true", func(j *job) any { return fmt.Sprint(*j.Spec.User, j.Spec.Env) }, "{4000000000 4000000000 []} [HOME=/]"},
		{"--kubeconfig /k true", func(j *job) any { return j.Kubeconfig }, "/k"},
	} {
		j, err := parseRun(t, c.line)
		if err != nil {
			t.Errorf("run %s: %v", c.line, err)
			continue
		}
		if got := fmt.Sprint(c.what(j)); got != c.want {
			t.Errorf("run %s: got %q, want %q", c.line, got, c.want)
		}
	}
}

func TestRunFlagErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"", "no command given: rutter run [flags] -- COMMAND [ARG...]"},
		{"--name Bad true", `--name "Bad": want lower case letters`},
		{"-n a.b true", `--namespace "a.b": no dots`},
		{"-l app true", `--label "app": want KEY=VALUE`},
		{"--port http true", `--port "http": want [NAME=]NUMBER`},
		{"--port 0 true", `--port "0": want [NAME=]NUMBER`},
		{"--port 65536 true", `--port "65536": want [NAME=]NUMBER`},
		{"--port 80/icmp true", `--port "80/icmp": the protocol is tcp, udp or sctp`},
		{"-e =x true", `--env "=x": want NAME=VALUE or NAME`},
		{"--readiness tcp=5432 true", `--readiness "tcp=5432": the port is missing, as in tcp=:80`},
		{"--readiness http-get=/x: true", `--readiness "http-get=/x:": the port is missing, as in http-get=:80`},
		{"--readiness grpc=:1 true", `--readiness "grpc=:1": want http-get=PATH:PORT`},
		{"--readiness exec= true", "--readiness exec: which command?"},
		{"--readiness tcp=:1 --readiness-period 500ms true", "--readiness-period 500ms: the API has whole seconds here, at least 1s"},
		{"--readiness tcp=:1 --readiness-timeout 0s true", "--readiness-timeout 0s: the API has whole seconds here, at least 1s"},
		{"--readiness tcp=:1 --readiness-failure-threshold 0 true", "are at least 1"},
		{"--dns-policy cluster true", `--dns-policy "cluster": want ClusterFirst, Default or None`},
		{"--dns-policy None true", "--dns-policy None needs at least one --dns"},
		{"--pod-cidr 10.1.0.0 true", `--pod-cidr "10.1.0.0": want a range`},
		{"--user no-such-user true", `--user "no-such-user": this host has no user no-such-user`},
		{"--user root:no-such-group true", `--user "root:no-such-group": this host has no group no-such-group`},
		{"--grace -1s true", "grace period -1s is negative"},
	} {
		_, err := parseRun(t, c.line)
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("run %s: %v, want a usage error with %q", c.line, err, c.want)
		}
	}
}

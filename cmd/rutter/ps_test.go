package main

import (
	"strings"
	"testing"
)

func TestShorten(t *testing.T) {
	for in, want := range map[string]string{
		"sh -c  'a\n\tb'":                    "sh -c 'a b'",
		"echo \x1b[2Jgone":                   "echo �[2Jgone",
		"bad \xff":                           "bad �",
		strings.Repeat("é", 60):              strings.Repeat("é", 60),
		strings.Repeat("é", 61):              strings.Repeat("é", 59) + "…",
		"x" + strings.Repeat("é", 30) + "yz": "x" + strings.Repeat("é", 30) + "yz",
	} {
		if got := shorten(in); got != want {
			t.Errorf("shorten(%q) = %q, want %q", in, got, want)
		}
	}
}

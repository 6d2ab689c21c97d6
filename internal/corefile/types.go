// Package corefile turns the text of a Corefile into server blocks.
//
// The road through the package, in order: lex.go cuts the text into tokens,
// source.go follows imports and snippets, parse.go reads blocks and directives,
// keys.go resolves the keys of a block to zones, overlap.go refuses blocks that
// claim the same zone on the same listener. What a directive means is not known
// here. Nothing is read but through Options, so parsing has no side effects.
package corefile

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
)

// Token is one word of a Corefile, quotes removed and environment variables
// replaced.
type Token struct {
	Text string
	File string // as it was opened: the name given to Parse, or the imported file's path
	Line int    // from 1; where the token begins
}

// Directive is one line of a server block: a plugin's name, its arguments and
// the properties in its block. Properties are directives themselves.
type Directive struct {
	Name Token
	Args []Token
	// Block holds the properties, in order. An empty block is told from none
	// by HasBlock.
	Block    []Directive
	HasBlock bool
}

// Key is one zone that a server block serves. A key written as a network in
// CIDR notation results in a Key per reverse zone.
type Key struct {
	Token  Token  // as written
	Scheme string // "dns", "tls", "quic", "grpc", "https" or "https3"
	Zone   string // lower case, fully qualified
	Port   string // decimal; the scheme's default where none was written
}

// String is the key in full: the scheme only where it is not dns.
func (k Key) String() string {
	if k.Scheme == "dns" {
		return k.Zone + ":" + k.Port
	}
	return k.Scheme + "://" + k.Zone + ":" + k.Port
}

// ServerBlock is the keys and directives that belong together.
type ServerBlock struct {
	Keys       []Key
	Directives []Directive
}

// Files is the access to the files that a Corefile imports. Paths are as the
// operating system writes them.
type Files interface {
	ReadFile(path string) ([]byte, error)
	// Glob lists the paths that match, as filepath.Glob.
	Glob(pattern string) ([]string, error)
}

// Options are what a Corefile's meaning depends on besides its text.
type Options struct {
	// Getenv looks environment variables up; unset ones are the empty string.
	// Nil means that none is set.
	Getenv func(name string) string
	// Files opens imported files. Nil means that none exists.
	Files Files
	// Port is the port of dns keys that name none; empty means 53.
	Port string
	// Directives are the names a directive may have. Empty: any.
	Directives []string
	// Missing are names that are directives of CoreDNS but are not available
	// here. They are refused like unknown names, in other words.
	Missing []string
	// Warn receives what is wrong but does not stop a server. It may be nil.
	Warn func(error)
}

// Hash returns the SHA-512 of what the blocks say, in hexadecimal. Layout,
// comments, and which file a token came from do not matter.
func Hash(blocks []ServerBlock) string {
	h := sha512.New()
	for _, b := range blocks {
		fmt.Fprintf(h, "block %d %d\n", len(b.Keys), len(b.Directives))
		for _, k := range b.Keys {
			fmt.Fprintf(h, "%q\n", k.String())
		}
		hashDirectives(h, b.Directives)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func hashDirectives(h hash.Hash, list []Directive) {
	for _, d := range list {
		fmt.Fprintf(h, "%q %d %d\n", d.Name.Text, len(d.Args), len(d.Block))
		for _, a := range d.Args {
			fmt.Fprintf(h, "%q\n", a.Text)
		}
		hashDirectives(h, d.Block)
	}
}

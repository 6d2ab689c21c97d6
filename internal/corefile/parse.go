package corefile

import (
	"os"
	"path/filepath"
	"strings"
)

// Parse reads the Corefile src. The filename appears in positions and is what
// relative imports are relative to. An error is an *Error, the first one met.
//
// A text without any key is no error: it results in no block.
func Parse(filename string, src []byte, opts Options) ([]ServerBlock, error) {
	list, err := lex(filename, src)
	if err != nil {
		return nil, err
	}
	p := &parser{source: source{opts: opts}}
	p.stack = []frame{{name: filename, list: list, parent: -1}}
	var blocks []ServerBlock
	for {
		b, err := p.serverBlock()
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		if len(b.Keys) > 0 {
			blocks = append(blocks, *b)
		}
	}
	if err := checkOverlap(blocks); err != nil {
		return nil, err
	}
	return blocks, nil
}

// OS returns the options that read this process's environment and files.
func OS() Options { return Options{Getenv: os.Getenv, Files: osFiles{}} }

type osFiles struct{}

func (osFiles) ReadFile(path string) ([]byte, error)  { return os.ReadFile(path) }
func (osFiles) Glob(pattern string) ([]string, error) { return filepath.Glob(pattern) }

type parser struct {
	source
	last Token // the lexeme taken last, for errors at the end of the file
}

func (p *parser) take() (*lexeme, error) {
	l, err := p.next()
	if l != nil {
		p.last = l.Token
	}
	return l, err
}

// serverBlock reads keys and what belongs to them. It returns nil at the end
// of the file, and a block without keys for a snippet.
func (p *parser) serverBlock() (*ServerBlock, error) {
	keys, err := p.keys()
	if err != nil || len(keys) == 0 {
		return nil, err
	}
	if name, ok := snippetName(keys); ok {
		return &ServerBlock{}, p.define(name, keys[0])
	}
	b := &ServerBlock{}
	for _, t := range keys {
		if t.Text == "" {
			continue // an empty word, from a variable that is not set
		}
		k, err := resolve(t, p.opts.Port)
		if err != nil {
			return nil, err
		}
		b.Keys = append(b.Keys, k...)
	}
	open, err := p.peek()
	if err != nil || open == nil {
		return b, err // keys alone are a server without plugins
	}
	braces := open.is("{")
	if braces {
		if _, err := p.take(); err != nil {
			return nil, err
		}
	}
	b.Directives, err = p.directives(keys[0], braces)
	return b, err
}

// keys reads words up to an opening brace or the end of the line. After a
// comma the list goes on, on the next line if need be.
func (p *parser) keys() ([]Token, error) {
	var keys []Token
	comma := false
	for {
		l, err := p.peek()
		if err != nil {
			return nil, err
		}
		switch {
		case l == nil && comma:
			return nil, expected(nil, p.last, "another key after the comma")
		case l == nil, len(keys) > 0 && l.first && !comma && !l.is("{"):
			return keys, nil
		case l.is("{"):
			if comma || len(keys) == 0 {
				return nil, expected(l, p.last, "a server block key such as example.org or .:53")
			}
			return keys, nil
		case l.is("}"):
			return nil, expected(l, p.last, "a server block key; there is no open block to close")
		}
		if l, err = p.take(); err != nil {
			return nil, err
		}
		t := l.Token
		if t.Text, comma = strings.CutSuffix(t.Text, ","); t.Text == "" && comma {
			continue // a comma on its own
		}
		keys = append(keys, t)
	}
}

func snippetName(keys []Token) (string, bool) {
	if len(keys) != 1 {
		return "", false
	}
	name, opens := strings.CutPrefix(keys[0].Text, "(")
	name, closes := strings.CutSuffix(name, ")")
	return name, opens && closes
}

// directives reads the lines of a server block up to its closing brace, or to
// the end of the file for the block that has no braces.
func (p *parser) directives(key Token, braces bool) ([]Directive, error) {
	var list []Directive
	for {
		l, err := p.peek()
		switch {
		case err != nil:
			return nil, err
		case l == nil && braces:
			return nil, expected(nil, p.last, "a directive or the } that closes the block of "+key.Text)
		case l == nil:
			return list, nil
		case l.is("}") && braces:
			_, err := p.take()
			return list, err
		case l.is("}"), l.is("{"):
			return nil, expected(l, p.last, "a directive")
		}
		d, err := p.directive()
		if err != nil {
			return nil, err
		}
		if err := p.known(d.Name); err != nil {
			return nil, err
		}
		list = append(list, d)
	}
}

func (p *parser) known(name Token) error {
	if len(p.opts.Directives) == 0 {
		return nil
	}
	for _, n := range p.opts.Directives {
		if n == name.Text {
			return nil
		}
	}
	for _, n := range p.opts.Missing {
		if n == name.Text {
			return Errorf(name, "directive %q is a CoreDNS plugin that Rutter does not have; remove the line or keep that zone on CoreDNS", name.Text)
		}
	}
	e := Errorf(name, "unknown directive %q", name.Text)
	if e.Suggestion = nearest(name.Text, p.opts.Directives); e.Suggestion == "" {
		e.Expected = "the name of a plugin"
	}
	return e
}

// directive reads a name, the rest of its line, and its block if the line ends
// in an opening brace. Properties inside are read the same way.
//
// Blocks nest at most as deep as the text has braces; the bound keeps a hostile
// text from exhausting the stack.
func (p *parser) directive() (Directive, error) { return p.line(0) }

const maxNesting = 16

func (p *parser) line(depth int) (Directive, error) {
	name, err := p.take()
	if err != nil {
		return Directive{}, err
	}
	d := Directive{Name: name.Token}
	if depth > maxNesting {
		return d, Errorf(d.Name, "blocks nest more than %d deep", maxNesting)
	}
	for {
		l, err := p.peek()
		if err != nil {
			return d, err
		}
		switch {
		case l == nil, l.first:
			return d, nil
		case l.is("}"):
			return d, expected(l, p.last, "the closing brace on a line of its own")
		case l.is("{"):
			d.HasBlock = true
			if _, err := p.take(); err != nil {
				return d, err
			}
			d.Block, err = p.properties(d.Name, depth)
			return d, err
		}
		if l, err = p.take(); err != nil {
			return d, err
		}
		d.Args = append(d.Args, l.Token)
	}
}

func (p *parser) properties(of Token, depth int) ([]Directive, error) {
	var list []Directive
	for {
		l, err := p.peek()
		switch {
		case err != nil:
			return nil, err
		case l == nil:
			return nil, expected(nil, p.last, "a property or the } that closes the block of "+of.Text)
		case l.is("}"):
			if _, err := p.take(); err != nil {
				return nil, err
			}
			l, err := p.peek()
			if err == nil && l != nil && !l.first && !l.is("}") {
				err = expected(l, p.last, "a new line after }")
			}
			return list, err
		case l.is("{"):
			return nil, expected(l, p.last, "a property")
		}
		d, err := p.line(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
}

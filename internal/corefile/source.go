package corefile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Bounds for what imports may unfold to. Cycles are refused at once; these stop
// a file that imports another twice, which imports a third twice, and so on.
const (
	maxImports = 10_000
	maxTokens  = 1 << 20
)

// source delivers lexemes in order, with imports already followed.
type source struct {
	opts     Options
	stack    []frame
	snippets map[string]snippet
	imports  int
	tokens   int
	raw      bool // a snippet is being recorded: imports in it are not followed
	opened   bool // the last lexeme was an opening brace
}

// frame is a file or snippet that is being read.
type frame struct {
	name   string // to recognise a cycle and to name it
	list   []lexeme
	args   []string
	parent int // index of the frame that imports it, -1 for the Corefile
}

// snippet is the tokens of `(name) { ... }`.
type snippet struct {
	at   Token
	list []lexeme
}

// peek returns the next lexeme without taking it; nil at the end.
func (s *source) peek() (*lexeme, error) {
	for len(s.stack) > 0 {
		top := &s.stack[len(s.stack)-1]
		if len(top.list) == 0 {
			s.stack = s.stack[:len(s.stack)-1]
			continue
		}
		l := &top.list[0]
		if !s.raw && l.is("import") && (l.first || s.opened) {
			if err := s.follow(top); err != nil {
				return nil, err
			}
			continue
		}
		if s.tokens > maxTokens {
			return nil, Errorf(l.Token, "imports unfold to more than %d words", maxTokens)
		}
		return l, nil
	}
	return nil, nil
}

// next takes the lexeme that peek shows.
func (s *source) next() (*lexeme, error) {
	l, err := s.peek()
	if l == nil || err != nil {
		return nil, err
	}
	top := &s.stack[len(s.stack)-1]
	top.list = top.list[1:]
	s.tokens++
	s.opened = l.is("{")
	if s.raw {
		return l, nil
	}
	// The lexeme may belong to a snippet that is used again: change a copy.
	c := *l
	c.Text = s.expand(c.Text, top.args)
	// A brace that came out of a variable is a word like any other.
	c.quoted = c.quoted || c.Text != l.Text
	return &c, nil
}

// expand replaces environment variables and the arguments of the import that
// brought the word here: {args.0}, {args.1}, ...
func (s *source) expand(text string, args []string) string {
	if len(args) > 0 && strings.Contains(text, "{args.") {
		for i, a := range args {
			text = strings.ReplaceAll(text, "{args."+strconv.Itoa(i)+"}", a)
		}
	}
	return expandEnv(text, s.opts.Getenv)
}

// follow puts what the import statement at the head of top names in its place.
func (s *source) follow(top *frame) error {
	at := top.list[0].Token
	n := 1
	for n < len(top.list) && !top.list[n].first && !top.list[n].is("{") && !top.list[n].is("}") {
		n++
	}
	words := make([]string, 0, n-1)
	for _, l := range top.list[1:n] {
		words = append(words, s.expand(l.Text, top.args))
	}
	top.list = top.list[n:]
	s.opened = false
	if len(words) == 0 || words[0] == "" {
		e := Errorf(at, "import names nothing")
		e.Expected = "a snippet, a file or a glob pattern"
		return e
	}
	if s.imports++; s.imports > maxImports {
		return Errorf(at, "more than %d imports", maxImports)
	}
	name, args, parent := words[0], words[1:], len(s.stack)-1

	if sn, ok := s.snippets[name]; ok {
		return s.push(at, parent, frame{name: "(" + name + ")", list: sn.list, args: args})
	}
	paths, err := s.paths(at, name)
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(paths) { // the stack is read from its end
		src, err := s.opts.Files.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			return s.notFound(at, name)
		}
		if err != nil {
			return Errorf(at, "import %s: %w", name, err)
		}
		list, err := lex(p, src)
		if err != nil {
			return err
		}
		if err := s.push(at, parent, frame{name: p, list: list, args: args}); err != nil {
			return err
		}
	}
	return nil
}

// paths lists the files that an import names, relative to the importing file.
func (s *source) paths(at Token, name string) ([]string, error) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(at.File), path)
	}
	if s.opts.Files == nil {
		return nil, s.notFound(at, name)
	}
	if !strings.ContainsAny(path, "*?[") {
		return []string{path}, nil
	}
	if strings.Count(path, "*") > 1 || strings.Count(path, "?") > 1 || strings.Contains(path, "[") {
		e := Errorf(at, "glob pattern %q has too many wildcards", name)
		e.Expected = "at most one * and one ?, and no [...]"
		return nil, e
	}
	paths, err := s.opts.Files.Glob(path)
	if err != nil {
		return nil, Errorf(at, "import %s: %w", name, err)
	}
	if len(paths) == 0 && s.opts.Warn != nil {
		s.opts.Warn(Errorf(at, "no file matches the glob pattern %q", name))
	}
	return paths, nil
}

func (s *source) notFound(at Token, name string) error {
	e := Errorf(at, "import %q is neither a snippet defined above nor a file", name)
	known := make([]string, 0, len(s.snippets))
	for n := range s.snippets {
		known = append(known, n)
	}
	slices.Sort(known)
	e.Suggestion = nearest(name, known)
	return e
}

// push makes f the next to be read. Files of one glob lie on the stack side by
// side, so what imports what is not the order of the stack.
func (s *source) push(at Token, parent int, f frame) error {
	f.parent = parent
	for i, path := parent, []string{f.name}; i >= 0; i = s.stack[i].parent {
		path = append(path, s.stack[i].name)
		if s.stack[i].name == f.name {
			slices.Reverse(path)
			return Errorf(at, "import goes in a circle: %s", strings.Join(path, " imports "))
		}
	}
	s.stack = append(s.stack, f)
	return nil
}

// define records the tokens of a snippet. The opening brace is the next lexeme.
func (s *source) define(name string, at Token) error {
	if old, ok := s.snippets[name]; ok {
		return Errorf(at, "snippet %q is already defined at %s:%d", name, old.at.File, old.at.Line)
	}
	open, err := s.next()
	if err != nil {
		return err
	}
	if open == nil || !open.is("{") {
		return expected(open, at, "{ after the snippet's name")
	}
	s.raw = true
	defer func() { s.raw = false }()
	var list []lexeme
	for depth := 1; ; {
		l, err := s.next()
		if err != nil {
			return err
		}
		switch {
		case l == nil:
			return Errorf(at, "snippet %q is never closed; a } is missing", name)
		case l.is("{"):
			depth++
		case l.is("}"):
			depth--
		}
		if depth == 0 {
			break
		}
		list = append(list, *l)
	}
	if len(list) > 0 {
		list[0].first = true
	}
	if s.snippets == nil {
		s.snippets = make(map[string]snippet)
	}
	s.snippets[name] = snippet{at: at, list: list}
	return nil
}

// expected is the error for a lexeme that should have been another one; last
// is where the file ends when l is nil.
func expected(l *lexeme, last Token, what string) error {
	if l == nil {
		e := Errorf(last, "unexpected end of file")
		e.Token, e.Expected = "", what
		return e
	}
	e := Errorf(l.Token, "unexpected %s", strconv.Quote(l.Text))
	e.Expected = what
	return e
}

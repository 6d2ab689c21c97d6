package corefile

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// lexeme is a token with what only the parser needs to know of it.
type lexeme struct {
	Token
	quoted bool // a quoted brace or the word import has no special meaning
	first  bool // begins a line
}

func (l *lexeme) is(text string) bool { return !l.quoted && l.Text == text }

// lex cuts src into lexemes. There is nothing that can't be a word except a
// quote that is never closed.
//
// A token that starts with a quote runs to the next one, over line ends too;
// inside it only \" is an escape, a backslash before anything else stays. A
// quote inside a token is an ordinary character. A number sign begins a comment
// wherever it stands outside quotes.
func lex(file string, src []byte) ([]lexeme, error) {
	src = bytes.TrimPrefix(src, []byte("\uFEFF"))
	var out []lexeme
	line, first := 1, true
	for i := 0; i < len(src); {
		r, size := utf8.DecodeRune(src[i:])
		switch {
		case r == '\n':
			line, first = line+1, true
			i++
		case unicode.IsSpace(r):
			i += size
		case r == '#':
			for i < len(src) && src[i] != '\n' {
				i++
			}
		case r == '"':
			t := Token{File: file, Line: line}
			text, n, ok := quoted(src[i+1:])
			if !ok {
				return nil, Errorf(t, `quote is never closed; a closing " is missing`)
			}
			t.Text = text
			out = append(out, lexeme{Token: t, quoted: true, first: first})
			line += bytes.Count(src[i+1:i+1+n], []byte("\n"))
			i += 1 + n
			first = false
		default:
			text, n := word(src[i:])
			out = append(out, lexeme{Token: Token{Text: text, File: file, Line: line}, first: first})
			i += n
			first = false
		}
	}
	return out, nil
}

// quoted reads up to and including the closing quote.
func quoted(src []byte) (text string, n int, ok bool) {
	var b strings.Builder
	for i := 0; i < len(src); i++ {
		switch c := src[i]; {
		case c == '"':
			return b.String(), i + 1, true
		case c == '\\' && i+1 < len(src):
			i++
			if src[i] != '"' {
				b.WriteByte('\\')
			}
			b.WriteByte(src[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, false
}

// word reads up to white space or a comment. Carriage returns vanish even from
// the middle of a word, so that they never decide anything.
func word(src []byte) (text string, n int) {
	for n < len(src) {
		r, size := utf8.DecodeRune(src[n:])
		if r != '\r' && (unicode.IsSpace(r) || r == '#') {
			break
		}
		n += size
	}
	return strings.ReplaceAll(string(src[:n]), "\r", ""), n
}

// expandEnv replaces {$NAME} and {%NAME%}. What was put in is not looked at
// again.
func expandEnv(s string, getenv func(string) string) string {
	if !strings.Contains(s, "{$") && !strings.Contains(s, "{%") {
		return s
	}
	var b strings.Builder
	for {
		start := strings.IndexByte(s, '{')
		if start < 0 || start+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		closing := ""
		switch s[start+1] {
		case '$':
			closing = "}"
		case '%':
			closing = "%}"
		}
		end := -1
		if closing != "" {
			end = strings.Index(s[start+2:], closing)
		}
		if end <= 0 { // not a reference, or one without a name: it stays
			b.WriteString(s[:start+1])
			s = s[start+1:]
			continue
		}
		b.WriteString(s[:start])
		if getenv != nil {
			b.WriteString(getenv(s[start+2 : start+2+end]))
		}
		s = s[start+2+end+len(closing):]
	}
}

package corefile

import (
	"fmt"
	"strings"
)

// Error says what is wrong at one place of a Corefile. It prints on one line.
type Error struct {
	File  string
	Line  int
	Token string // the word that is wrong; may be empty
	// Problem is what is wrong with it, Expected what may stand there instead,
	// Suggestion the word that was probably meant. The last two may be empty.
	Problem, Expected, Suggestion string
	Err                           error // the cause, if it is another error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d: %s", e.File, e.Line, e.Problem)
	if e.Expected != "" {
		b.WriteString("; expected " + e.Expected)
	}
	if e.Suggestion != "" {
		fmt.Fprintf(&b, "; did you mean %q?", e.Suggestion)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an error about t. The format may use %w once.
func Errorf(t Token, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{
		File: t.File, Line: t.Line, Token: t.Text,
		Problem: wrapped.Error(),
		Err:     wrapped,
	}
}

// Unknown returns the error for a word that is none of those known, for
// example Unknown("property of forward", t, "max_fails", "policy").
func Unknown(what string, t Token, known ...string) *Error {
	e := Errorf(t, "unknown %s %q", what, t.Text)
	if e.Suggestion = nearest(t.Text, known); e.Suggestion == "" && 0 < len(known) && len(known) <= 24 {
		e.Expected = oneOf(known)
	}
	return e
}

// Arguments returns the error for a directive or property with a wrong number
// of arguments; want says what it takes, for example "a duration".
func Arguments(d Directive, want string) *Error {
	e := Errorf(d.Name, "wrong arguments for %q: got %s", d.Name.Text, count(len(d.Args)))
	e.Expected = want
	return e
}

func count(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}

func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}

// nearest returns the candidate that word was most likely meant to be, or "":
// at most a third of its letters may differ, a swap of two counting once.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of inserted, deleted, changed or swapped letters
// between a and b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before, last, now [65]int
	for j := range len(b) + 1 {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		now[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
		before, last = last, now
	}
	return last[len(b)]
}

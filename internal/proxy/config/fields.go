package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

var unknownField = regexp.MustCompile(`^unknown field "(.+)"$`)

// ignoredField words the warning of a field that is not known, with the one
// that was probably meant.
func ignoredField(text string) string {
	m := unknownField.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	parent, name := "", m[1]
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		parent, name = name[:i+1], name[i+1:]
	}
	best, least := "", 3 // two letters may differ
	for _, known := range fields(reflect.TypeFor[Config](), "") {
		if sibling, ok := strings.CutPrefix(known, parent); ok && !strings.Contains(sibling, ".") {
			if d := distance(name, sibling); d < least {
				best, least = known, d
			}
		}
	}
	if best != "" {
		return fmt.Sprintf("unknown field %q is ignored: did you mean %s?", m[1], best)
	}
	return fmt.Sprintf("unknown field %q is ignored", m[1])
}

// fields are the names that a file can have, with their parents'.
func fields(t reflect.Type, parent string) (names []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			continue
		}
		names = append(names, parent+name)
		if f.Type.Kind() == reflect.Struct {
			names = append(names, fields(f.Type, parent+name+".")...)
		}
	}
	return names
}

// distance is how many letters must be inserted, removed or replaced to make b
// of a, whatever their case.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

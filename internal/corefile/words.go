package corefile

import (
	"regexp"
	"strconv"
	"time"
)

// Want refuses d unless it has between least and most arguments; a negative
// most sets no limit. The text says what it takes: "a duration".
func (d Directive) Want(least, most int, what string) error {
	if len(d.Args) < least || most >= 0 && len(d.Args) > most {
		return Arguments(d, what)
	}
	return nil
}

// NoBlock refuses a block where none has a meaning.
func (d Directive) NoBlock() error {
	if d.HasBlock {
		e := Errorf(d.Name, "%q takes no block", d.Name.Text)
		e.Expected = "the end of the line instead of {"
		return e
	}
	return nil
}

// Flag refuses a property that has arguments or a block.
func (d Directive) Flag() error {
	if err := d.Want(0, 0, "no argument"); err != nil {
		return err
	}
	return d.NoBlock()
}

// Duration reads t as a Go duration.
func (t Token) Duration() (time.Duration, error) {
	v, err := time.ParseDuration(t.Text)
	if err != nil {
		e := Errorf(t, "%q is not a duration", t.Text)
		e.Expected = "a number with a unit, such as 30s or 1m30s"
		return 0, e
	}
	return v, nil
}

// DurationFrom reads t as a duration of at least least.
func (t Token) DurationFrom(least time.Duration) (time.Duration, error) {
	v, err := t.Duration()
	if err == nil && v < least {
		e := Errorf(t, "duration %s is too short", t.Text)
		e.Expected = "at least " + least.String()
		return 0, e
	}
	return v, err
}

// Number reads t as a whole number from least to most.
func (t Token) Number(least, most int) (int, error) {
	v, err := strconv.Atoi(t.Text)
	if err != nil || v < least || v > most {
		e := Errorf(t, "number %s is out of range", t.Text)
		if err != nil {
			e = Errorf(t, "%q is no number", t.Text)
		}
		e.Expected = "a number from " + strconv.Itoa(least) + " to " + strconv.Itoa(most)
		if most == maxInt {
			e.Expected = "a number of at least " + strconv.Itoa(least)
		}
		return 0, e
	}
	return v, nil
}

const maxInt = int(^uint(0) >> 1)

// Count reads t as a number of things, zero included.
func (t Token) Count() (int, error) { return t.Number(0, maxInt) }

// maxRegexp is the longest expression that is compiled, as in CoreDNS.
const maxRegexp = 10_000

// Regexp compiles t.
func (t Token) Regexp() (*regexp.Regexp, error) {
	if len(t.Text) > maxRegexp {
		return nil, Errorf(t, "regular expression is longer than %d bytes", maxRegexp)
	}
	re, err := regexp.Compile(t.Text)
	if err != nil {
		return nil, Errorf(t, "%w", err)
	}
	return re, nil
}

// Zones reads t as a zone or a network, as in a key: a scheme and a port may be
// there and mean nothing.
func (t Token) Zones() ([]string, error) {
	keys, err := resolve(t, "")
	if err != nil {
		return nil, err
	}
	zones := make([]string, len(keys))
	for i, k := range keys {
		zones[i] = k.Zone
	}
	return zones, nil
}

// ZoneList reads every word of list as Zones does.
func ZoneList(list []Token) ([]string, error) {
	var zones []string
	for _, t := range list {
		z, err := t.Zones()
		if err != nil {
			return nil, err
		}
		zones = append(zones, z...)
	}
	return zones, nil
}

// OneOf refuses t unless it is one of the words.
func (t Token) OneOf(what string, words ...string) error {
	for _, w := range words {
		if t.Text == w {
			return nil
		}
	}
	return Unknown(what, t, words...)
}

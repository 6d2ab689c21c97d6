package dns

import "regexp"

// known lists where Rutter differs from CoreDNS on purpose. Each line is also
// one of docs/compatibility.md. A line that no answer needs any more fails the
// test.
var known = []*knownDifference{
	{
		variant: regexp.MustCompile(`^(cache|kubeadm)`), query: regexp.MustCompile(`^(\+\S+ )*WWW\.Example\.TEST\. `), part: regexp.MustCompile(`answer|authority`), spelling: true,
		reason: "a cache hit has the spelling of its own question, as a miss has; CoreDNS's has that of whoever asked first",
	},
	{
		variant: regexp.MustCompile(`^kubeadm$`), query: regexp.MustCompile(`(?i)cluster\.local\. `), part: regexp.MustCompile(`answer|authority|additional`), spelling: true,
		reason: "answers from the cluster's data never come from the cache, so they have the spelling of their question and the whole TTL",
	},
	{
		variant: regexp.MustCompile(`^small-plugins$`), query: regexp.MustCompile(`\+nsid `), part: regexp.MustCompile(`edns`), text: regexp.MustCompile(`do false.*, not .*do true`),
		reason: "the DO bit of a reply is the query's (RFC 3225 §3); CoreDNS's nsid sets it",
	},
}

type knownDifference struct {
	variant  *regexp.Regexp // matches the case's name
	query    *regexp.Regexp // matches "+options name TYPE"
	part     *regexp.Regexp // matches the part of the answer
	text     *regexp.Regexp // matches the difference; nil: any
	spelling bool           // only capital letters and TTLs differ
	reason   string
	seen     int
}

func isKnown(variant, query string, d difference) bool {
	for _, k := range known {
		if k.variant.MatchString(variant) && k.query.MatchString(query) && k.part.MatchString(d.part) &&
			(k.text == nil || k.text.MatchString(d.text)) && (d.spelling || !k.spelling) {
			k.seen++
			return true
		}
	}
	return false
}

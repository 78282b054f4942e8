package site

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// maxName is the maximum length of a site's name. A name is safe in a URL path, in a log
// and, percent-encoded, as a file name.
const maxName = 64

// Name is what a handler calls its site: a name, or a template with placeholders. Each
// request fills in the placeholders, and each resulting name is a separate site.
type Name struct {
	text  string
	parts []part         // of a template
	shape *regexp.Regexp // matches the names that a template can yield; nil for a name
}

// part is literal text of a template, and the placeholder that follows it, if any.
type part struct{ literal, placeholder string }

// ParseName parses the name of a site, or a template. It folds ASCII upper case, except in
// the keys of placeholders.
func ParseName(text string) (*Name, error) {
	if text == "" {
		return nil, errors.New(`invalid site "": must not be empty (for example shop.example.com)`)
	}
	if !strings.ContainsAny(text, "{}") {
		folded := Fold(text)
		if isReserved(folded) {
			return nil, fmt.Errorf("invalid site %q: reserved for a command; choose another name (for example shop.example.com)", text)
		}
		if !isName(folded) {
			return nil, fmt.Errorf("invalid site %q: must be 1 to 64 of a-z 0-9 . - _ : *, start with a letter, digit or *, "+
				"and may contain placeholders such as {host} (for example shop.example.com)", text)
		}
		return &Name{text: folded}, nil
	}
	return parseTemplate(text)
}

// placeholders matches the placeholders of a template.
var placeholders = regexp.MustCompile(`\{[^{}]+\}`)

func parseTemplate(text string) (*Name, error) {
	n := new(Name)
	end := 0
	for _, at := range placeholders.FindAllStringIndex(text, -1) {
		n.parts = append(n.parts, part{Fold(text[end:at[0]]), text[at[0]+1 : at[1]-1]})
		end = at[1]
	}
	n.parts = append(n.parts, part{literal: Fold(text[end:])})
	if !isName(n.with(func(string) string { return "0" })) {
		return nil, fmt.Errorf("invalid site %q: must consist of placeholders in braces and at most 64 of a-z 0-9 . - _ : *, "+
			"and start with a placeholder, letter, digit or * (for example {host} or shop-{labels.2})", text)
	}
	n.text = n.with(func(key string) string { return "{" + key + "}" })
	const value = "\x00" // no name contains it
	shape := regexp.QuoteMeta(n.with(func(string) string { return value }))
	n.shape = regexp.MustCompile("^" + strings.ReplaceAll(shape, value, "(.+)") + "$")
	return n, nil
}

// with returns the template with values in place of its placeholders.
func (n *Name) with(value func(key string) string) string {
	var b strings.Builder
	for _, p := range n.parts {
		b.WriteString(p.literal)
		if p.placeholder != "" {
			b.WriteString(value(p.placeholder))
		}
	}
	return b.String()
}

// String returns the name, or the template.
func (n *Name) String() string { return n.text }

// IsTemplate reports whether the name contains placeholders.
func (n *Name) IsTemplate() bool { return n.shape != nil }

// Expand returns the name that a template yields with these values for its placeholders. It
// returns false if a value is empty or the name is invalid.
func (n *Name) Expand(value func(key string) string) (name string, ok bool) {
	for _, p := range n.parts {
		name += p.literal
		if p.placeholder == "" {
			break
		}
		v := Normalize(value(p.placeholder))
		if v == "" || len(name)+len(v) > maxName {
			return "", false
		}
		name += v
	}
	return name, isName(name)
}

// Yields reports whether n is that name, or a template that can yield it.
func (n *Name) Yields(name string) bool {
	if !n.IsTemplate() {
		return n.text == name
	}
	if !isName(name) {
		return false
	}
	values := n.shape.FindStringSubmatch(name)
	for _, value := range values[min(1, len(values)):] {
		if Normalize(value) != value {
			return false
		}
	}
	return values != nil
}

// MayYieldNameOf reports whether two templates may yield the same name, as far as their text before
// the first and after the last placeholder tells.
func (n *Name) MayYieldNameOf(other *Name) bool {
	before, after := n.parts[0].literal, n.parts[len(n.parts)-1].literal
	otherBefore, otherAfter := other.parts[0].literal, other.parts[len(other.parts)-1].literal
	return (strings.HasPrefix(before, otherBefore) || strings.HasPrefix(otherBefore, before)) &&
		(strings.HasSuffix(after, otherAfter) || strings.HasSuffix(otherAfter, after))
}

// Literals returns the number of characters in a template outside its placeholders.
func (n *Name) Literals() int { return len(n.with(func(string) string { return "" })) }

// NormalizeHost is Normalize for a Host header. It also removes brackets, as matchers do,
// and everything after a colon, unless the host is an IPv6 address.
func NormalizeHost(host string) string {
	if inner, _, found := strings.Cut(strings.TrimPrefix(host, "["), "]"); found {
		host = inner
	}
	host = strings.Trim(host, "[]")
	if !isIPv6(host) {
		host, _, _ = strings.Cut(host, ":")
	}
	return Normalize(host)
}

func isIPv6(s string) bool {
	if strings.Count(s, ":") < 2 {
		return false // avoids allocating an error
	}
	_, err := netip.ParseAddr(s)
	return err == nil
}

// HostLabel returns a label of a normalized host, counted from the right.
func HostLabel(host, index string) string {
	i, err := strconv.Atoi(index)
	labels := strings.Split(host, ".")
	if err != nil || i < 0 || i >= len(labels) {
		return ""
	}
	return labels[len(labels)-1-i]
}

// Normalize folds ASCII upper case and removes trailing dots and ports, even repeated ones,
// so that all spellings of a host are the same site.
func Normalize(value string) string {
	if isIPv6(value) {
		return Fold(value)
	}
	for {
		shorter := strings.TrimRight(value, ".")
		if i := strings.LastIndexByte(shorter, ':'); i >= 0 && strings.Trim(shorter[i+1:], "0123456789") == "" {
			shorter = shorter[:i]
		}
		if shorter == value {
			return Fold(value)
		}
		value = shorter
	}
}

// Fold makes ASCII upper case lower case.
func Fold(s string) string {
	if !hasUpper(s) {
		return s // as in nearly all requests
	}
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func hasUpper(s string) bool {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return true
		}
	}
	return false
}

// isName reports whether a name is valid. It runs for each request of a template.
func isName(s string) bool {
	if s == "" || len(s) > maxName || strings.IndexByte("._:-", s[0]) >= 0 || isReserved(s) {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("._:-*", c) < 0 {
			return false
		}
	}
	return true
}

// isReserved reports whether a name is reserved for a command.
func isReserved(s string) bool {
	switch s {
	case "on", "off", "run", "page", "instances", "forget", "status", "help":
		return true
	}
	return false
}

package page

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
)

// Source is the URL or the absolute path of a custom page.
type Source struct {
	location string
	shown    string // without userinfo and query, which may be secret
	remote   bool
}

// String returns the source without secrets.
func (s Source) String() string { return s.shown }

// Location returns the URL with its secrets, or the path. It identifies the source.
func (s Source) Location() string { return s.location }

// Remote reports whether the source is a URL.
func (s Source) Remote() bool { return s.remote }

// ParseSource parses the URL or the path of a custom page. It does not access either.
func ParseSource(text string) (Source, error) {
	if strings.HasPrefix(text, "//") {
		text = "https:" + text
	}
	if !strings.Contains(text, "://") {
		path, err := filepath.Abs(text)
		return Source{location: path, shown: path}, err
	}
	u, err := url.Parse(text)
	if err != nil {
		// Neither the URL nor the error is shown: they may contain a password.
		return Source{}, errors.New("invalid URL: cannot be parsed; " +
			"in a password or query, percent-encode everything except letters, digits and - . _ ~")
	}
	source := Source{location: text, shown: withoutSecrets(u), remote: true}
	if u.Scheme != "https" && u.Scheme != "http" {
		return Source{}, fmt.Errorf("invalid URL %q: must start with https:// or http://; for a file, give its path without a scheme", source)
	}
	if u.Hostname() == "" {
		return Source{}, errors.New("invalid URL: the host is missing (for example https://status.example.com/down.html)")
	}
	return source, nil
}

// Check parses the source of a custom page. It reads and returns a file, and returns an error
// if that is no valid page. It does not fetch a URL.
func Check(text string) (Source, *Copy, error) {
	source, err := ParseSource(text)
	if err != nil || source.remote {
		return source, nil, err
	}
	c, err := readFile(source.location)
	if errors.Is(err, fs.ErrNotExist) && looksLikeURL(text) {
		return Source{}, nil, fmt.Errorf("%s; did you mean https:%s?", redact(err.Error()), redact("//"+scheme.ReplaceAllString(text, "")))
	}
	return source, c, err
}

// scheme matches a scheme that lacks one or both slashes.
var scheme = regexp.MustCompile(`(?i)^https?:/?`)

// looksLikeURL reports whether text may be a URL without its scheme.
func looksLikeURL(text string) bool {
	host, _, hasPath := strings.Cut(text, "/")
	return strings.ContainsAny(host, ".:") && !strings.HasPrefix(host, ".") && !strings.Contains(text, "{") &&
		(hasPath || !strings.HasPrefix(filepath.Ext(host), ".htm"))
}

// Insecure reports whether the page is fetched over plain http from another machine.
func (s Source) Insecure() bool {
	u, err := url.Parse(s.location)
	if !s.remote || err != nil || u.Scheme == "https" {
		return false
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	return host != "localhost" && !strings.HasSuffix(host, ".localhost") && !net.ParseIP(host).IsLoopback()
}

// withoutSecrets returns a URL without userinfo and query.
func withoutSecrets(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery, public.Fragment, public.RawFragment = nil, "", false, "", ""
	return public.String()
}

// urlSecrets matches userinfo and query of URLs in a text.
var urlSecrets = regexp.MustCompile(`(/)[^/?#"]*@|[?#][^\s"]*`)

func redact(s string) string { return urlSecrets.ReplaceAllString(s, "$1") }

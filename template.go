package maintenance

import (
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// A handler of a template serves each request with a copy of itself for the request's site. It
// serves requests of sites that are not in memory itself, unless another template decides their
// initial state.

// nameOf returns the name of the request's site: s, or for a template what it yields for the
// request. It is "" if that is no valid name; such a request belongs to no site, and
// initial_state decides.
func (s *configuredSite) nameOf(r *http.Request, log *zap.Logger) string {
	if !s.isTemplate() {
		return s.Name
	}
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return ""
	}
	name, ok := s.entry.Name().Expand(func(key string) string {
		// All spellings of a host are one host to matchers and apps.
		switch label, isLabel := strings.CutPrefix(key, "http.request.host.labels."); {
		case isLabel:
			return site.HostLabel(site.NormalizeHost(r.Host), label)
		case key == "http.request.host", key == "http.request.hostport":
			return site.NormalizeHost(r.Host)
		}
		value, known := replacer.GetString(key)
		if !known && !s.warned.Swap(true) {
			log.Warn("unknown placeholder in the site name; requests without a value for it belong to no site and follow initial_state",
				zap.String("site", s.Name), zap.String("placeholder", key))
		}
		return value
	})
	if !ok {
		return ""
	}
	return name
}

// serving returns the site whose state decides on requests of that name: for a template the site of
// that name if it is in memory, else the template that stands for it.
func (t *configuredSite) serving(name string) *configuredSite {
	if !t.isTemplate() {
		return t
	}
	if entry := sites.Find(name); entry != nil {
		if s := t.config.siteOf(entry); s != nil {
			return s
		}
	}
	differs := func(other *configuredSite) bool { return other.initiallyOn != t.initiallyOn }
	if slices.ContainsFunc(t.config.templates, differs) {
		if templates := t.config.yielding(name); len(templates) > 0 {
			return templates[0]
		}
	}
	return t
}

// of returns the handler of the site of that name.
func (h *Handler) of(name string) *Handler {
	s := h.site.serving(name)
	if s == h.site {
		return h
	}
	if known, ok := s.gates.Load(h); ok {
		return known.(*Handler)
	}
	own := *h
	own.template = h
	own.site, own.bypass = s, newBypass(s, h.log, h.bypass.matchers)
	own.view = s.viewOf(h.view.page)
	known, _ := s.gates.LoadOrStore(h, &own)
	return known.(*Handler)
}

// serves reports whether own, which h.of returned, is still the handler of the site. A site
// can come into memory, and leave it, at any time.
func (h *Handler) serves(name string, own *Handler) bool {
	return h.site.serving(name).entry == own.site.entry
}

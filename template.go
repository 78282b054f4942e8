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

// nameOf returns the name of the request's site. It is "" if the template yields no valid name
// for the request; such a request belongs to no site, and initial_state decides.
func (h *Handler) nameOf(r *http.Request) string {
	if !h.site.isTemplate() {
		return h.site.Name
	}
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return ""
	}
	name, ok := h.site.entry.Name().Expand(func(key string) string {
		// All spellings of a host are one host to matchers and apps.
		switch label, isLabel := strings.CutPrefix(key, "http.request.host.labels."); {
		case isLabel:
			return site.HostLabel(site.NormalizeHost(r.Host), label)
		case key == "http.request.host", key == "http.request.hostport":
			return site.NormalizeHost(r.Host)
		}
		value, known := replacer.GetString(key)
		if !known && !h.site.warned.Swap(true) {
			h.log.Warn("unknown placeholder in the site name; requests without a value for it belong to no site and follow initial_state",
				zap.String("site", h.site.Name), zap.String("placeholder", key))
		}
		return value
	})
	if !ok {
		return ""
	}
	return name
}

// of returns the handler of the site of that name.
func (h *Handler) of(name string) *Handler {
	s := h.siteOf(name)
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
	return h.siteOf(name).entry == own.site.entry
}

// siteOf returns the site of that name if it is in memory, else the template that stands for
// it.
func (h *Handler) siteOf(name string) *configuredSite {
	if !h.site.isTemplate() {
		return h.site
	}
	if entry := sites.Find(name); entry != nil {
		if s := h.site.config.siteOf(entry); s != nil {
			return s
		}
	}
	differs := func(t *configuredSite) bool { return t.initiallyOn != h.site.initiallyOn }
	if slices.ContainsFunc(h.site.config.templates, differs) {
		if templates := h.site.config.yielding(name); len(templates) > 0 {
			return templates[0]
		}
	}
	return h.site
}

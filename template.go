package maintenance

import (
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// A handler of a template serves a request as the handler of a site of its own: a copy of it
// with that site. It is itself the handler of all sites that are not in memory, unless another
// template says how a site begins.

// nameOf returns the name of the site that a request is for; "" if the template makes none
// of it, which is a site that was never switched.
func (h *Handler) nameOf(r *http.Request) string {
	if !h.site.isTemplate() {
		return h.site.Name
	}
	replacer, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return ""
	}
	name, ok := h.site.entry.Name().Expand(func(key string) string {
		// However a host is written, it is the same one to matchers and apps.
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
	own.site, own.cookieName = s, site.CookieName(s.Name)
	own.view = s.viewOf(h.view.page)
	known, _ := s.gates.LoadOrStore(h, &own)
	return known.(*Handler)
}

// serves reports whether a handler that of has returned is still that of the site. A site
// can come into memory, and go, at any time.
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
		if s := h.site.app.siteOf(entry); s != nil {
			return s
		}
	}
	differs := func(t *configuredSite) bool { return t.initiallyOn != h.site.initiallyOn }
	if slices.ContainsFunc(h.site.app.templates, differs) {
		if templates := h.site.app.yielding(name); len(templates) > 0 {
			return templates[0]
		}
	}
	return h.site
}

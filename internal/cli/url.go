package cli

import (
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"example.com/caddy-maintenance/internal/site"
)

// httpApp is the part of the config of Caddy's http app that tells where a site is.
type httpApp struct {
	HTTPPort  int                   `json:"http_port"`
	HTTPSPort int                   `json:"https_port"`
	Servers   map[string]httpServer `json:"servers"`
}

type httpServer struct {
	Listen         []string    `json:"listen"`
	Routes         []httpRoute `json:"routes"`
	Policies       []struct{}  `json:"tls_connection_policies"`
	AutomaticHTTPS struct {
		Disable bool     `json:"disable"`
		Skip    []string `json:"skip"`
	} `json:"automatic_https"`
}

type httpRoute struct {
	Match []struct {
		Host []string `json:"host"`
	} `json:"match"`
	Handle []struct {
		Handler string      `json:"handler"`
		Site    string      `json:"site"`
		Routes  []httpRoute `json:"routes"`
	} `json:"handle"`
}

// siteURL returns the URL of a site, without a slash at the end, or "" if no route of the config
// names its host.
func (c client) siteURL(name string) string {
	var app httpApp
	if err := c.send(http.MethodGet, "/config/apps/http", nil, &app); err != nil {
		return "" // access control may allow switching, but not reading the config
	}
	return app.siteURL(name)
}

func (a httpApp) siteURL(name string) string {
	if a.HTTPPort == 0 {
		a.HTTPPort = 80
	}
	if a.HTTPSPort == 0 {
		a.HTTPSPort = 443
	}
	for _, id := range slices.Sorted(maps.Keys(a.Servers)) {
		server := a.Servers[id]
		host := findHost(server.Routes, name, "")
		if host == "" || len(server.Listen) == 0 {
			continue
		}
		_, text, err := net.SplitHostPort(server.Listen[0])
		port, _ := strconv.Atoi(text)
		switch auto := server.AutomaticHTTPS; {
		case err != nil:
			continue
		case len(server.Policies) == 0 && (port == a.HTTPPort || auto.Disable || slices.Contains(auto.Skip, host)):
			return joinURL("http", host, port, a.HTTPPort)
		default:
			return joinURL("https", host, port, a.HTTPSPort)
		}
	}
	return ""
}

func joinURL(scheme, host string, port, usual int) string {
	if port != usual {
		host = net.JoinHostPort(host, strconv.Itoa(port))
	}
	return scheme + "://" + host
}

// findHost returns the host of the first route that has a handler of the site, or "" if there is
// no such route or its host is a pattern.
func findHost(routes []httpRoute, name, host string) string {
	for _, route := range routes {
		host := host
		for _, match := range route.Match {
			if i := slices.IndexFunc(match.Host, isOneHost); i >= 0 {
				host = match.Host[i]
				break
			}
		}
		for _, h := range route.Handle {
			switch {
			case h.Handler == "maintenance" && site.Fold(h.Site) == name:
				return host
			case h.Handler == "maintenance" && h.Site == "{http.request.host}":
				return name
			}
			if found := findHost(h.Routes, name, host); found != "" {
				return found
			}
		}
	}
	return ""
}

func isOneHost(host string) bool { return !strings.ContainsAny(host, "*{") }

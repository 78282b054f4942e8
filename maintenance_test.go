package maintenance

import (
	"fmt"
	"strings"
	"testing"
)

func TestSiteIsServedUntilItIsSwitchedOn(t *testing.T) {
	s := start(t, `maintenance Shop.Example`)
	s.wantStatus("/", 200)
	s.put("SHOP.example", "")
	s.wantStatus("/", 503)
	s.delete("shop.example")
	s.wantStatus("/", 200)
}

// Which requests of a site in maintenance the directive answers, wherever it stands.
func TestRequestsThatAreGated(t *testing.T) {
	for name, test := range map[string]struct{ directives, requests string }{
		"a matcher limits it": {"@writes method POST PUT\nmaintenance @writes shop", "GET / 200, POST / 503, PUT /x 503"},
		"bypasses": {
			`
			@office query office=yes
			maintenance shop {
				bypass @office
				bypass /healthz
				bypass {
					method POST
					path /hooks/*
				}
			}`,
			"GET / 503, GET /?office=yes 200, GET /?office=no 503, " +
				"GET /healthz 200, GET /healthz/x 503, POST /hooks/pay 200, GET /hooks/pay 503, POST / 503",
		},
		"an error of a bypass is no match": {
			"maintenance shop {\nbypass {\nexpression `int({query.n}) > 1`\n}\n}",
			"GET /?n=many 500, GET /?n=2 200, GET /?n=1 503",
		},
		"before what answers": {`
			redir /old /new
			rewrite /secret /
			header X-From-Site yes
			basic_auth /secret {
				bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
			}
			handle /handled {
				respond "handled"
			}
			maintenance shop`, "GET /old 503, GET /secret 503, GET /handled 503"},
		"after vars and map": {`
			maintenance shop {
				bypass {
					vars from_vars yes
				}
				bypass {
					vars {from_map} yes
				}
			}
			vars /vars from_vars yes
			map {path} {from_map} {
				/map yes
				default no
			}`, "GET /vars 200, GET /map 200, GET / 503"},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, test.directives)
			s.put("shop", "")
			for request := range strings.SplitSeq(test.requests, ", ") {
				method, path, _ := strings.Cut(request, " ")
				path, want, _ := strings.Cut(path, " ")
				got := s.do(method, path, nil)
				if fmt.Sprint(got.StatusCode) != want || got.StatusCode == 503 && got.Header.Get("X-From-Site") != "" {
					t.Errorf("%s got %d %v", request, got.StatusCode, got.Header)
				}
			}
		})
	}
}

// Handlers of one name are switched together, and each keeps its own options.
func TestInitialStateHoldsUntilTheFirstSwitch(t *testing.T) {
	const directives = `
		handle /de/* {
			maintenance preprod {
				initial_state on
				retry_after 1m
			}
			respond "app"
		}
		handle {
			maintenance preprod {
				initial_state on
			}
			respond "app"
		}`
	s := start(t, directives)
	for path, want := range map[string]string{"/de/": "60", "/en/": "300"} {
		if got := s.get(path).Header.Get("Retry-After"); got != want {
			t.Errorf("Retry-After of %s is %q, want %s", path, got, want)
		}
	}
	if got := s.status("preprod"); got["state"] != "on" || got["since"] != nil {
		t.Errorf("never switched: state is %v since %v, want on and no time", got["state"], got["since"])
	}
	s.delete("preprod")
	for _, load := range []func(string){func(string) {}, s.reload, s.restart} {
		load(directives)
		for _, path := range []string{"/de/", "/en/"} {
			s.wantStatus(path, 200)
		}
	}
}

// Which directive a request for a site meets makes no difference to how the site begins.
func TestDirectiveWithMostLiteralTextSaysHowASiteBegins(t *testing.T) {
	for _, test := range []struct{ any, pre string }{{"on", "off"}, {"off", "on"}} {
		t.Run(test.pre, func(t *testing.T) {
			s := start(t, fmt.Sprintf(`
				handle /any {
					maintenance {query.site} {
						initial_state %s
					}
					respond "app"
				}
				handle {
					maintenance pre-{query.site} {
						initial_state %s
					}
					respond "app"
				}`, test.any, test.pre))
			code := map[string]int{"on": 503, "off": 200}
			s.wantStatus("/any?site=shop", code[test.any])
			s.wantStatus("/any?site=pre-shop", code[test.pre])
			s.wantStatus("/?site=shop", code[test.pre])
			if got := s.status("pre-shop")["state"]; got != test.pre {
				t.Errorf("state is %v, want %s", got, test.pre)
			}
			s.put("pre-shop", "")
			s.wantStatus("/any?site=pre-shop", 503)
			s.delete("pre-shop")
			s.wantStatus("/any?site=pre-shop", 200)
		})
	}
}

package maintenance

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"example.com/caddy-maintenance/internal/site"
)

// adapt turns a Caddyfile into JSON as `caddy adapt` does.
func adapt(caddyfile string) (string, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return string(config), err
}

func TestDirectiveBecomesJSON(t *testing.T) {
	got, err := adapt(`:8080 {
	@office remote_ip 192.0.2.0/24
	maintenance @office Shop.example {
		retry_after 90s
		bypass @office
		bypass /healthz
		bypass {
			method POST
			path /hooks/*
		}
		initial_state on
	}
}`)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
		"match": [{"remote_ip": {"ranges": ["192.0.2.0/24"]}}],
		"handle": [{
			"handler": "maintenance",
			"site": "Shop.example",
			"retry_after": 90000000000,
			"bypass": [
				{"remote_ip": {"ranges": ["192.0.2.0/24"]}},
				{"path": ["/healthz"]},
				{"method": ["POST"], "path": ["/hooks/*"]}
			],
			"initial_state": "on"
		}]
	}`
	if !strings.Contains(compact(t, got), compact(t, want)) {
		t.Errorf("got\n%s\nwant it to contain\n%s", got, want)
	}
}

func TestGlobalOptionBecomesJSON(t *testing.T) {
	for given, want := range map[string]string{
		"sync_interval 5s":  `"maintenance":{"sync_interval":5000000000}`,
		"sync_interval off": `"maintenance":{"sync_interval":-1}`,
	} {
		got, err := adapt("{\nmaintenance {\n" + given + "\n}\n}\n:8080 {\nmaintenance shop\n}")
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%s became %s (%v), want %s", given, got, err, want)
		}
	}
}

// G7
func TestWrongCaddyfileIsRefused(t *testing.T) {
	const nameRule = `accepted are 1 to 64 of a-z 0-9 . - _ : *, beginning with a letter, digit or *; a hostname makes a good name`
	for _, test := range []struct{ directive, want string }{
		{`maintenance`, `maintenance needs the name of the site that it switches, for example: maintenance shop, at Caddyfile:2`},
		{`maintenance *`, `maintenance needs the name of the site that it switches, for example: maintenance shop, at Caddyfile:2`},
		{`maintenance {
			retry_after 5m
		}`, `maintenance needs the name of the site that it switches, for example: maintenance shop, at Caddyfile:2`},
		{`maintenance shop blog`, `maintenance takes one site name, and "blog" is left over; sites that are to be switched together carry the same name, at Caddyfile:2`},
		{`maintenance -shop`, `site: "-shop" given, ` + nameRule + `, at Caddyfile:2`},
		{`maintenance "my shop"`, `site: "my shop" given, ` + nameRule + `, at Caddyfile:2`},
		{`maintenance ` + strings.Repeat("a", 65), `site: "` + strings.Repeat("a", 65) + `" given, ` + nameRule + `, at Caddyfile:2`},
		{`maintenance ON`, `site: "ON" given, which would read as a command; a hostname makes a good name, at Caddyfile:2`},
		{`maintenance status`, `site: "status" given, which would read as a command; a hostname makes a good name, at Caddyfile:2`},
		{`maintenance @undefined shop`, `unrecognized matcher name: @undefined`},
		{`maintenance shop {
			colour red
		}`, `unknown subdirective "colour"; maintenance knows page, retry_after, refresh, bypass and initial_state, at Caddyfile:3`},
		{`maintenance shop {
			retry_after
		}`, `retry_after takes one argument, and 0 are given, at Caddyfile:3`},
		{`maintenance shop {
			retry_after 1m 2m
		}`, `retry_after takes one argument, and 2 are given, at Caddyfile:3`},
		{`maintenance shop {
			retry_after 1m {
				5m
			}
		}`, `retry_after takes no block, at Caddyfile:4`},
		{`maintenance shop {
			retry_after soon
		}`, `retry_after: "soon" given, a duration is accepted, such as "90s", "5m" or "1d", at Caddyfile:3`},
		{`maintenance shop {
			retry_after 0
		}`, `retry_after: 0s given, at least 1s is accepted, at Caddyfile:3`},
		{`maintenance shop {
			retry_after 999ms
		}`, `retry_after: 999ms given, at least 1s is accepted, at Caddyfile:3`},
		{`maintenance shop {
			retry_after 1m
			retry_after 1m
		}`, `retry_after is given twice, at Caddyfile:4`},
		{`maintenance shop {
			initial_state
		}`, `initial_state takes one argument, and 0 are given, at Caddyfile:3`},
		{`maintenance shop {
			initial_state up
		}`, `initial_state: "up" given, on or off is accepted, at Caddyfile:3`},
		{`maintenance shop {
			initial_state ""
		}`, `initial_state: "" given, on or off is accepted, at Caddyfile:3`},
		{`maintenance shop {
			bypass
		}`, `bypass: an empty matcher given, which would let every request through; name what may pass, for example: bypass /healthz, at Caddyfile:3`},
		{`maintenance shop {
			bypass *
		}`, `bypass: an empty matcher given, which would let every request through; name what may pass, for example: bypass /healthz, at Caddyfile:3`},
		{`maintenance shop {
			bypass {
			}
		}`, `bypass: an empty matcher given, which would let every request through; name what may pass, for example: bypass /healthz, at Caddyfile:4`},
		{`maintenance shop {
			bypass 192.0.2.1
		}`, `bypass: "192.0.2.1" is no matcher; accepted are @name, a path such as /healthz, or a block of matchers, at Caddyfile:3`},
		{`maintenance shop {
			bypass @undefined
		}`, `bypass: unrecognized matcher name: @undefined, at Caddyfile:3`},
		{`maintenance shop {
			bypass /a /b
		}`, `bypass takes one matcher, and "/b" is left over; for matchers of which any may match repeat bypass, for such that must all match use a block, at Caddyfile:3`},
		{`maintenance shop {
			bypass /a {
				method GET
			}
		}`, `bypass takes a matcher or a block of matchers, not both, at Caddyfile:4`},
		{`maintenance shop {
			bypass {
				colour red
			}
		}`, `getting matcher module 'colour': module not registered: http.matchers.colour, at Caddyfile:5`},
	} {
		_, err := adapt(":8080 {\n" + test.directive + "\n}")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\ngot  %v\nwant %s", test.directive, err, test.want)
		}
	}
}

// G7
func TestWrongGlobalOptionIsRefused(t *testing.T) {
	for _, test := range []struct{ option, want string }{
		{`maintenance shop`, `the global option maintenance takes no argument, and "shop" is given; a site's name goes with the directive in a site block, at Caddyfile:2`},
		{`maintenance {
			colour red
		}`, `unknown option "colour"; maintenance knows sync_interval, at Caddyfile:3`},
		{`maintenance {
			sync_interval
		}`, `sync_interval takes one argument, and 0 are given, at Caddyfile:3`},
		{`maintenance {
			sync_interval 1s 2s
		}`, `sync_interval takes one argument, and 2 are given, at Caddyfile:3`},
		{`maintenance {
			sync_interval often
		}`, `sync_interval: "often" given, a duration is accepted, such as "90s", "5m" or "1d", at Caddyfile:3`},
		{`maintenance {
			sync_interval 99ms
		}`, `sync_interval: 99ms given, 100ms to 1m0s or off is accepted, at Caddyfile:3`},
		{`maintenance {
			sync_interval 2m
		}`, `sync_interval: 2m0s given, 100ms to 1m0s or off is accepted, at Caddyfile:3`},
		{`maintenance {
			sync_interval -1s
		}`, `sync_interval: -1s given, 100ms to 1m0s or off is accepted, at Caddyfile:3`},
		{`maintenance {
			sync_interval 1s
			sync_interval 1s
		}`, `sync_interval is given twice, at Caddyfile:4`},
		{`maintenance {
		}
		maintenance {
		}`, `the global option maintenance is given twice, at Caddyfile:4`},
	} {
		_, err := adapt("{\n" + test.option + "\n}\n:8080 {\nmaintenance shop\n}")
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\ngot  %v\nwant %s", test.option, err, test.want)
		}
	}
}

// G7
func TestWrongJSONConfigIsRefusedAndChangesNothing(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Back at three."}`)
	record := s.storage.get("maintenance/sites/shop.json")

	for _, test := range []struct{ handlers, app, want string }{
		{`{"handler": "maintenance"}`, `{}`, `site: no name given; name the site that is switched, for example: maintenance shop`},
		{`{"handler": "maintenance", "site": "a b"}`, `{}`, `site: "a b" given, accepted are 1 to 64 of a-z 0-9 . - _ : *`},
		{`{"handler": "maintenance", "site": "help"}`, `{}`, `site: "help" given, which would read as a command`},
		{`{"handler": "maintenance", "site": 5}`, `{}`, `cannot unmarshal number`},
		{`{"handler": "maintenance", "site": "shop", "colour": "red"}`, `{}`, `unknown field "colour"`},
		{`{"handler": "maintenance", "site": "shop", "retry_after": "500ms"}`, `{}`, `retry_after: 500ms given, at least 1s is accepted`},
		{`{"handler": "maintenance", "site": "shop", "retry_after": -1}`, `{}`, `retry_after: -1ns given, at least 1s is accepted`},
		{`{"handler": "maintenance", "site": "shop", "initial_state": "up"}`, `{}`, `initial_state: "up" given, on or off is accepted`},
		{`{"handler": "maintenance", "site": "shop", "bypass": [{}]}`, `{}`, `bypass: an empty matcher given, which would let every request through`},
		{`{"handler": "maintenance", "site": "shop", "bypass": [{"path": ["/a"]}, null]}`, `{}`, `bypass: an empty matcher given, which would let every request through`},
		{`{"handler": "maintenance", "site": "shop", "bypass": [{"colour": "red"}]}`, `{}`, `unknown module: http.matchers.colour`},
		{
			`{"handler": "maintenance", "site": "shop"}, {"handler": "maintenance", "site": "SHOP", "initial_state": "on"}`, `{}`,
			`initial_state: one handler of site shop says on and another does not; all of them must`,
		},
		{`{"handler": "maintenance", "site": "shop"}`, `{"sync_interval": "10ms"}`, `sync_interval: 10ms given, 100ms to 1m0s or off is accepted`},
		{`{"handler": "maintenance", "site": "shop"}`, `{"colour": "red"}`, `unknown field "colour"`},
	} {
		config := `{"admin": {"listen": "` + strings.TrimPrefix(s.admin, "http://") + `", "config": {"persist": false}},
			"storage": {"module": "test", "name": "` + t.Name() + `"},
			"apps": {"maintenance": ` + test.app + `, "http": {"servers": {"srv": {"listen": ["` + strings.TrimPrefix(s.url, "http://") + `"],
			"routes": [{"handle": [` + test.handlers + `]}]}}}}}`
		err := caddy.Load([]byte(config), true)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, app %s\ngot  %v\nwant %s", test.handlers, test.app, err, test.want)
		}
		s.wantStatus("/", 503)
		if got := s.status("shop"); got["state"] != "on" || got["message"] != "Back at three." {
			t.Errorf("after it the site is %v", got)
		}
		if got := s.storage.get("maintenance/sites/shop.json"); got != record {
			t.Errorf("after it the record is %s, want %s", got, record)
		}
	}
}

func FuzzDirective(f *testing.F) {
	for _, seed := range []string{
		"maintenance shop",
		"maintenance @m shop {\nretry_after 1d\nbypass /x\nbypass @m\ninitial_state on\n}",
		"maintenance shop {\nbypass {\npath /x\nmethod GET\n}\n}",
		"maintenance shop {\nbypass `{path} == \"/\"`\n}",
		"maintenance {\n}\n}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, directive string) {
		if strings.Contains(directive, "import") || strings.Contains(directive, "{$") {
			return // reads files or the environment
		}
		config, err := adapt(":8080 {\n@m path /m\n" + directive + "\n}")
		if err != nil {
			return
		}
		for handler := range handlers(t, config) {
			if _, err := site.ParseName(handler.Site); err != nil {
				t.Errorf("accepted a site that %v", err)
			}
			if handler.RetryAfter < 0 {
				t.Errorf("accepted retry_after %d", handler.RetryAfter)
			}
			for _, matcherSet := range handler.BypassRaw {
				if len(matcherSet) == 0 {
					t.Error("accepted an empty bypass")
				}
			}
		}
	})
}

// handlers finds the maintenance handlers in a config.
func handlers(t *testing.T, config string) map[*Handler]bool {
	found := make(map[*Handler]bool)
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, child := range node {
				walk(child)
			}
		case map[string]any:
			if node["handler"] == "maintenance" {
				raw, _ := json.Marshal(node)
				var h Handler
				if err := json.Unmarshal(raw, &h); err != nil {
					t.Errorf("adapted to what is no handler: %v", err)
				}
				found[&h] = true
			}
			for _, child := range node {
				walk(child)
			}
		}
	}
	var decoded any
	if err := json.Unmarshal([]byte(config), &decoded); err != nil {
		t.Fatal(err)
	}
	walk(decoded)
	return found
}

// compact removes the spaces from JSON, and orders fields.
func compact(t *testing.T, text string) string {
	t.Helper()
	var value any
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	compacted, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(compacted), "{}")
}

package maintenance

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

func TestCaddyfileBecomesJSON(t *testing.T) {
	got, err := adapt(`{
	maintenance {
		sync_interval 5s
	}
}
:8080 {
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
	for _, want := range []string{`{"maintenance": {"sync_interval": 5000000000}}`, `{
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
	}`} {
		if want = compact(t, want); !strings.Contains(compact(t, got), want) {
			t.Errorf("got\n%s\nwant it to contain\n%s", got, want)
		}
	}
	got, err = adapt(":8080 {\nmaintenance shop-{labels.2}\n}")
	if err != nil || !strings.Contains(got, `"site":"shop-{http.request.host.labels.2}"`) {
		t.Errorf("got %s %v", got, err)
	}
	got, err = adapt("{\nmaintenance {\nsync_interval off\n}\n}\n:8080")
	if err != nil || !strings.Contains(got, `"maintenance":{"sync_interval":-1}`) {
		t.Errorf("got %s %v", got, err)
	}
}

// compact removes the spaces from an object, and its braces, and orders fields.
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

const (
	noName       = `maintenance needs the name of a site (for example maintenance shop), at Caddyfile:2`
	emptyMatcher = `invalid bypass: an empty matcher would let every request through; name what may pass (for example bypass /healthz)`
)

// Each error has its line. Line 2 is that of the directive, or the option.
//
// G7
func TestWrongCaddyfileIsRefused(t *testing.T) {
	const interval = `": must be 100ms to 1m, or off (for example 2s), at Caddyfile:3`
	for place, tests := range map[string]map[string]string{
		":8080 {\n%\n}": {
			`maintenance`:                      noName,
			`maintenance *`:                    noName,
			"maintenance {\nretry_after 5m\n}": noName,
			`maintenance shop blog`: `unexpected argument "blog": maintenance takes one site name; ` +
				`give sites the same name to switch them together, at Caddyfile:2`,
			`maintenance "my shop"`: `invalid site "my shop": must be 1 to 64 of a-z 0-9 . - _ : *, start with a letter, digit or *, ` +
				`and may contain placeholders such as {host} (for example shop.example.com), at Caddyfile:2`,
			`maintenance ON`:              `invalid site "ON": reserved for a command; choose another name (for example shop.example.com), at Caddyfile:2`,
			`maintenance @undefined shop`: `unrecognized matcher name: @undefined`,
		},
		":8080 {\nmaintenance shop {\n%\n}\n}": {
			`colour red`: `unknown subdirective "colour"; ` +
				`maintenance knows page, retry_after, refresh, bypass and initial_state, at Caddyfile:3`,
			`retry_after`:                    `retry_after takes one argument, got 0, at Caddyfile:3`,
			`retry_after 1m 2m`:              `retry_after takes one argument, got 2, at Caddyfile:3`,
			"retry_after 1m {\n5m\n}":        `retry_after takes no block, at Caddyfile:4`,
			`retry_after soon`:               `invalid retry_after "soon": must be a duration with a unit (for example 30s), at Caddyfile:3`,
			`retry_after 0`:                  `invalid retry_after "0s": must be at least 1s (for example 5m), at Caddyfile:3`,
			`retry_after 999ms`:              `invalid retry_after "999ms": must be at least 1s (for example 5m), at Caddyfile:3`,
			"retry_after 1m\nretry_after 1m": `retry_after is given twice, at Caddyfile:4`,
			`initial_state`:                  `initial_state takes one argument, got 0, at Caddyfile:3`,
			`initial_state up`:               `invalid initial_state "up": must be on or off, at Caddyfile:3`,
			`initial_state ""`:               `invalid initial_state "": must be on or off, at Caddyfile:3`,
			`bypass`:                         emptyMatcher + `, at Caddyfile:3`,
			`bypass *`:                       emptyMatcher + `, at Caddyfile:3`,
			"bypass {\n}":                    emptyMatcher + `, at Caddyfile:4`,
			`bypass 192.0.2.1`: `invalid bypass "192.0.2.1": must be a matcher ` +
				`(for example @name, /healthz or a block of matchers), at Caddyfile:3`,
			`bypass @undefined`: `bypass: unrecognized matcher name: @undefined, at Caddyfile:3`,
			`bypass /a /b`: `unexpected argument "/b": bypass takes one matcher; ` +
				`repeat bypass if any of several may match, or use a block if all must match, at Caddyfile:3`,
			"bypass /a {\nmethod GET\n}": `bypass takes a matcher or a block of matchers, not both, at Caddyfile:4`,
			"bypass {\ncolour red\n}":    `getting matcher module 'colour': module not registered: http.matchers.colour, at Caddyfile:5`,
		},
		"{\n%\n}\n:8080 {\nmaintenance shop\n}": {
			`maintenance shop`: `unexpected argument "shop": the global option maintenance takes none; ` +
				`a site name belongs to the directive in a site block, at Caddyfile:2`,
			"maintenance {\n}\nmaintenance {\n}": `the global option maintenance is given twice, at Caddyfile:4`,
		},
		"{\nmaintenance {\n%\n}\n}\n:8080 {\nmaintenance shop\n}": {
			`colour red`:                         `unknown option "colour"; maintenance knows sync_interval, at Caddyfile:3`,
			`sync_interval`:                      `sync_interval takes one argument, got 0, at Caddyfile:3`,
			`sync_interval 1s 2s`:                `sync_interval takes one argument, got 2, at Caddyfile:3`,
			`sync_interval often`:                `invalid sync_interval "often": must be a duration with a unit (for example 30s)`,
			`sync_interval 99ms`:                 `invalid sync_interval "99ms` + interval,
			`sync_interval 2m`:                   `invalid sync_interval "2m0s` + interval,
			`sync_interval -1s`:                  `invalid sync_interval "-1s` + interval,
			"sync_interval 1s\nsync_interval 1s": `sync_interval is given twice, at Caddyfile:4`,
		},
	} {
		for written, want := range tests {
			if _, err := adapt(strings.Replace(place, "%", written, 1)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s\ngot  %v\nwant %s", written, err, want)
			}
		}
	}
}

// G7
func TestWrongJSONConfigIsRefusedAndChangesNothing(t *testing.T) {
	s := start(t, `maintenance shop`)
	s.put("shop", `{"message": "Back at three."}`)
	record := s.storage.get(shopKey)
	const good = `"site": "shop"`
	for _, test := range []struct{ handler, app, want string }{
		{`"retry_after": "5m"`, `{}`, `invalid site "": must not be empty (for example shop.example.com)`},
		{`"site": "a b"`, `{}`, `invalid site "a b": must be 1 to 64 of a-z 0-9 . - _ : *`},
		{`"site": 5`, `{}`, `cannot unmarshal number`},
		{good + `, "colour": "red"`, `{}`, `unknown field "colour"`},
		{good + `, "retry_after": "500ms"`, `{}`, `invalid retry_after "500ms": must be at least 1s (for example 5m)`},
		{good + `, "retry_after": -1`, `{}`, `invalid retry_after "-1ns": must be at least 1s (for example 5m)`},
		{good + `, "initial_state": "up"`, `{}`, `invalid initial_state "up": must be on or off`},
		{good + `, "bypass": [{}]`, `{}`, emptyMatcher},
		{good + `, "bypass": [{"path": ["/a"]}, null]`, `{}`, emptyMatcher},
		{good + `, "bypass": [{"colour": "red"}]`, `{}`, `unknown module: http.matchers.colour`},
		{
			good + `}, {"handler": "maintenance", "site": "SHOP", "initial_state": "on"`, `{}`,
			`conflicting initial_state: one handler of site shop says on and another does not; use the same value in all of them`,
		},
		{
			`"site": "a-{http.request.uri.query.a}"}, {"handler": "maintenance", "site": "a-{http.request.uri.query.b}", "initial_state": "on"`, `{}`,
			`conflicting initial_state: handlers of sites a-{http.request.uri.query.a} and a-{http.request.uri.query.b} can make the same name, and only one of them says on; ` +
				`use the same value in both, or a text that tells the names apart (for example pre-a-{http.request.uri.query.b})`,
		},
		{`"site": "{host}"`, `{}`, `invalid site "{host}": has a shorthand of the Caddyfile, which has no value in JSON; write {http.request.host}`},
		{`"site": "Shop-{labels.2}"`, `{}`, `invalid site "shop-{labels.2}": has a shorthand of the Caddyfile, which has no value in JSON; write shop-{http.request.host.labels.2}`},
		{good, `{"sync_interval": "10ms"}`, `invalid sync_interval "10ms": must be 100ms to 1m, or off (for example 2s)`},
		{good, `{"colour": "red"}`, `unknown field "colour"`},
	} {
		err := caddy.Load([]byte(`{"admin": {"listen": "`+strings.TrimPrefix(s.admin, "http://")+`", "config": {"persist": false}},
			"storage": {"module": "test", "name": "`+t.Name()+`"},
			"apps": {"maintenance": `+test.app+`, "http": {"servers": {"srv": {"listen": ["`+strings.TrimPrefix(s.url, "http://")+`"],
			"routes": [{"handle": [{"handler": "maintenance", `+test.handler+`}]}]}}}}}`), true)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, app %s\ngot  %v\nwant %s", test.handler, test.app, err, test.want)
		}
		s.wantStatus("/", 503)
		if got := s.status("shop"); got["state"] != "on" || got["message"] != "Back at three." || s.storage.get(shopKey) != record {
			t.Errorf("after it the site is %v, and its record %s", got, s.storage.get(shopKey))
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
		var decoded any
		if err := json.Unmarshal([]byte(config), &decoded); err != nil {
			t.Fatal(err)
		}
		eachHandler(t, decoded, func(h Handler) {
			if _, err := site.ParseName(h.Site); err != nil || h.RetryAfter < 0 {
				t.Errorf("accepted a site that %v, retry_after %d", err, h.RetryAfter)
			}
			for _, matcherSet := range h.BypassRaw {
				if len(matcherSet) == 0 {
					t.Error("accepted an empty bypass")
				}
			}
		})
	})
}

// eachHandler looks at the maintenance handlers in a config.
func eachHandler(t *testing.T, node any, look func(Handler)) {
	switch node := node.(type) {
	case []any:
		for _, child := range node {
			eachHandler(t, child, look)
		}
	case map[string]any:
		if node["handler"] == "maintenance" {
			raw, _ := json.Marshal(node)
			var h Handler
			if err := json.Unmarshal(raw, &h); err != nil {
				t.Errorf("adapted to what is no handler: %v", err)
			}
			look(h)
		}
		for _, child := range node {
			eachHandler(t, child, look)
		}
	}
}

package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig"

	maintenance "example.com/caddy-maintenance"
)

// The tests here compare the reference in docs/ with the module: what is missing in it, and
// what it makes up, is an error.

// readFile returns what is in a file.
func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// readSection returns what stands below a heading of a page in docs/, up to the next heading of
// its level or a higher one.
func readSection(t *testing.T, page, title string) string {
	t.Helper()
	text := readFile(t, "../docs/"+page)
	heading := regexp.MustCompile(`(?m)^(#+) ` + regexp.QuoteMeta(title) + `$`).FindStringSubmatchIndex(text)
	if heading == nil {
		t.Fatalf("%s has no heading %q", page, title)
	}
	section := text[heading[1]:]
	next := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} .*$`, heading[3]-heading[2]))
	for _, found := range next.FindAllStringIndex(section, -1) {
		if strings.Count(section[:found[0]], "```")%2 == 0 { // not a comment in a block of code
			return section[:found[0]]
		}
	}
	return section
}

// readTable returns the rows of the n-th table whose first column is called so.
func readTable(t *testing.T, section, column string, n int) (rows [][]string) {
	t.Helper()
	tables := strings.Split(section, "\n| "+column+" |")
	if len(tables) <= n {
		t.Fatalf("there is no table %d of %q", n, column)
	}
	for _, line := range strings.Split(tables[n], "\n")[2:] { // after its head
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "|"), `\|`, "\x00"), "|")
		for i, cell := range cells {
			cells[i] = strings.ReplaceAll(strings.TrimSpace(cell), "\x00", "|")
		}
		rows = append(rows, cells)
	}
	return rows
}

// find returns what the group of a pattern matches, wherever it does.
func find(pattern, text string) (found []string) {
	for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, strings.Join(match[1:], ""))
	}
	return found
}

// codesIn returns what is written as code.
func codesIn(text string) []string { return find("`` ?(.+?) ?``|`([^`]+)`", text) }

// firstCodes returns the names that a table is about.
func firstCodes(rows [][]string) (names []string) {
	for _, row := range rows {
		names = append(names, find("`([^ `]+)", row[0])[0])
	}
	return names
}

// expectSame compares what the reference names with what there is, in any order.
func expectSame(t *testing.T, what string, named, real []string) {
	t.Helper()
	named, real = slices.Sorted(slices.Values(named)), slices.Sorted(slices.Values(real))
	if len(real) == 0 || !slices.Equal(named, slices.Compact(real)) {
		t.Errorf("%s: the reference has\n%s\nand there are\n%s", what, strings.Join(named, "\n"), strings.Join(real, "\n"))
	}
}

// Configuration

func TestReferenceHasTheWholeConfig(t *testing.T) {
	t.Parallel()
	section := readSection(t, "caddyfile.md", "JSON")
	for n, config := range []reflect.Type{reflect.TypeFor[maintenance.Handler](), reflect.TypeFor[maintenance.App]()} {
		var fields []string
		for field := range config.Fields() {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				fields = append(fields, name)
			}
		}
		rows := rowOfEach(readTable(t, section, "field", n+1))
		expectSame(t, config.Name(), slices.Collect(maps.Keys(rows)), fields)
	}
	c := newCaddy(t)
	path := filepath.Join(c.dir, "caddy.json")
	write(t, path, find("(?s)```json\n(.*?)```", section)[0])
	if got := c.command("validate", "--config", path); got.code != 0 {
		t.Errorf("the JSON is refused: %s", got.stderr)
	}

	for _, test := range []struct{ heading, caddyfile, option string }{
		{"Directive", ":80 {\n%s\n}\n", "maintenance shop {\n %s\n}"},
		{"Global option", "{\n%s\n}\n", "maintenance {\n %s\n}"},
	} {
		section := readSection(t, "caddyfile.md", test.heading)
		refused := refusal(c, fmt.Sprintf(test.caddyfile, fmt.Sprintf(test.option, "nonsense")))
		known := strings.Split(strings.ReplaceAll(find("maintenance knows (.*?), at ", refused)[0], " and ", ", "), ", ")
		expectSame(t, test.heading, find(`(?m)^- <a id="\w+"></a>\*\*(\w+)\*\* `, section), known)
		syntax := find("(?s)```text\n(.*?)```", section)[0]
		expectSame(t, test.heading, find(`(?m)^\t+([a-z_]+) .*[^{]$`, syntax), known)

		for written, row := range rowOfEach(readTable(t, section, "written", 1)) {
			want, text := strings.Trim(row[1], "`"), written
			if !strings.HasPrefix(written, "maintenance") {
				text = fmt.Sprintf(test.option, written)
			}
			got := refusal(c, fmt.Sprintf(test.caddyfile, text))
			// The place is known where the config is read. A file is looked for where it is loaded.
			isFile := strings.HasPrefix(written, "page /") || strings.HasPrefix(want, "did you mean")
			if !strings.Contains(got, want) || !isFile && !regexp.MustCompile(regexp.QuoteMeta(want)+",? at ").MatchString(got) {
				t.Errorf("%s is refused with %q, and not with %q", written, got, want)
			}
		}
	}
}

// refusal returns what is said to be wrong with a Caddyfile, when it is read or else when
// it is loaded.
func refusal(c *caddy, caddyfile string) string {
	c.t.Helper()
	_, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err.Error()
	}
	write(c.t, c.configPath(), caddyfile)
	got := c.command("validate", "--adapter", "caddyfile", "--config", c.configPath())
	if got.code == 0 {
		c.t.Errorf("not refused:\n%s", caddyfile)
	}
	return got.stderr
}

// Admin API

func TestReferenceHasEveryFieldOfTheAnswer(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	page := filepath.Join(c.dir, "page.html")
	write(t, page, "<!DOCTYPE html><title>Back soon</title>")
	shop := newSite(t, "shop", newApp(t, welcome))
	shop.block = fmt.Sprintf("{\n page %q\n}", page)
	c.start(c.caddyfile(shop))
	never := c.fields("/maintenance/shop")

	_, refused, _ := c.request(http.MethodPut, "/maintenance/shop", `{"nonsense": 1}`)
	known := strings.Split(find("the options are (.*?)\"", refused)[0], ", ")
	expectSame(t, "options", firstCodes(readTable(t, readSection(t, "api.md", "Options"), "option", 1)), known)

	remove(t, page) // so that there is an error
	c.on("shop", `{"message": "Soon.", "reason": "Moving.", "by": "eve@web-1", "retry_after": "1h", "until": "2096-01-31T03:00:00Z", "hold": "1s",
		"terminate_after": "1h", "bypass_secret": "0123456789-ABCDEF"}`)
	var all map[string]any
	pageOf := func(answer map[string]any) map[string]any { return answer["pages"].([]any)[0].(map[string]any) }
	eventually(t, patience, "the page is found to be missing", func() bool {
		all = c.fields("/maintenance/shop")
		return pageOf(all)["error"] != nil
	})
	write(t, filepath.Join(c.storage, "maintenance", "instances", "web-9-00000000.json"), `{"instance": "web-9", "clock": "2096-01-31T03:00:00Z"}`)
	instances := make(map[bool]map[string]any) // by whether the clock is off
	var list []map[string]any
	c.get("/maintenance/shop/instances", &list)
	for _, i := range list {
		instances[i["clock_offset"] != nil] = i
	}
	section := readSection(t, "api.md", "Answer")
	for _, test := range []struct {
		rows     [][]string
		all      map[string]any
		without  map[string]any
		whatever string // a field that may be absent, but is not here
		others   []string
	}{
		{readTable(t, section, "field", 1), all, never, "", []string{"from", "error", "configured"}}, // of a site that is not just on
		{readTable(t, section, "field", 2), pageOf(all), pageOf(never), "fetched_at", nil},
		{readTable(t, readSection(t, "api.md", "Instances"), "field", 1), instances[true], instances[false], "", nil},
	} {
		rows := rowOfEach(test.rows)
		expectSame(t, "answer", slices.Collect(maps.Keys(rows)), append(test.others, slices.Collect(maps.Keys(test.all))...))
		for name, row := range rows {
			if got := typeOf(test.all[name]); got != row[1] && !slices.Contains(test.others, name) {
				t.Errorf("%s is a %s in the reference, and a %s in the answer %v", name, row[1], got, test.all)
			}
			if _, there := test.without[name]; name != test.whatever && there != (row[3] == "") {
				t.Errorf("%s: the reference says of its absence %q, and the answer is %v", name, row[3], test.without)
			}
		}
	}
}

// rowOfEach returns the row of each name in a table where a row may be about several.
func rowOfEach(rows [][]string) map[string][]string {
	of := make(map[string][]string)
	for _, row := range rows {
		for _, name := range codesIn(row[0]) {
			of[name] = row
		}
	}
	return of
}

// fields returns what the admin API answers.
func (c *caddy) fields(path string) (fields map[string]any) {
	c.t.Helper()
	c.get(path, &fields)
	return fields
}

// get reads what the admin API answers.
func (c *caddy) get(path string, into any) {
	c.t.Helper()
	_, answer, err := c.request(http.MethodGet, path, "")
	if err == nil {
		err = json.Unmarshal([]byte(answer), into)
	}
	if err != nil {
		c.t.Fatal(err, answer)
	}
}

func typeOf(value any) string {
	switch value := value.(type) {
	case string:
		if regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`).MatchString(value) {
			return "time"
		}
	case float64:
		return "number"
	case bool:
		return "boolean"
	case []any:
		return "array"
	}
	return fmt.Sprintf("%T", value)
}

// Command

func TestReferenceHasEveryFlag(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	rows := readTable(t, readSection(t, "command.md", "Command"), "flag", 1)
	for what, args := range map[string][]string{
		"shows": nil, "on": {"on"}, "off": {"off"}, "run": {"run"}, "page": {"page"}, "instances": {"instances"}, "forget": {"forget"},
	} {
		help := c.command(append(append([]string{"maintenance"}, args...), "--help")...).stdout
		known := find(`(--[a-z-]+)|(-[a-z]),`, find(`(?s)\nFlags:\n(.*?)\n\n`, help)[0])
		var named []string
		for _, row := range rows {
			if row[1] == "all" || slices.Contains(codesIn(row[1]), what) || slices.Contains(strings.Split(row[1], ", "), what) {
				named = append(named, find("`(-[a-z-]+)", row[0])...)
			}
		}
		expectSame(t, "flags of "+what, named, known)
	}
}

// The commands of the synopsis, and the flags that the README shows.
func TestSynopsisAndFlagsOfTheREADME(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	help := c.command("maintenance", "--help").stdout
	commands := find(`(?m)^  (\w+) +`, find(`(?s)Available Commands:\n(.*?)\n\n`, help)[0])
	expectSame(t, "commands", find(`(?m)^caddy maintenance (\w+)`, readFile(t, "../docs/command.md")), commands)
	for _, row := range readTable(t, readFile(t, "../README.md"), "flag of `on`", 1) {
		for _, flag := range codesIn(row[0]) {
			name, value, hasValue := strings.Cut(flag, " ")
			args := []string{"maintenance", "on", "shop", name}
			if hasValue {
				args = append(args, strings.Trim(value, `"`))
			}
			if got := c.command(args...); got.code != 0 {
				t.Errorf("%s: got %+v", flag, got)
			}
			c.off("shop")
		}
	}
}

// Metrics, events and log

func TestReferenceHasEveryMetric(t *testing.T) {
	t.Parallel()
	c, _ := startSite(t, literal, welcome)
	rows := readTable(t, readSection(t, "monitoring.md", "Metrics"), "name", 1)
	metrics := func() string {
		_, text, err := c.request(http.MethodGet, "/metrics", "")
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var never string
	eventually(t, patience, "the storage has been looked at", func() bool {
		never = metrics()
		return strings.Contains(never, "\ncaddy_maintenance_last_sync_timestamp_seconds")
	})
	c.command("maintenance", "on", "shop", "--from", "2096-01-31T02:00:00Z")
	all := metrics()
	c.on("shop", "")
	all += metrics()
	outcomes := find(`outcome="(\w+)"`, all)
	var named []string
	for _, row := range rows {
		name := codesIn(row[0])[0]
		labels := codesIn(row[2])
		named = append(named, name+" "+row[1])
		sample := find(`(?m)^`+name+`({.*})? `, all)
		if len(sample) == 0 {
			continue // which is said below
		}
		real := find(`(\w+)="`, sample[0])
		if slices.Reverse(real); !slices.Equal(real, labels) { // the site first
			t.Errorf("%s has the labels %q, and not %q", name, real, labels)
		}
		if !strings.Contains(never, "\n"+name) && row[4] == "" {
			t.Errorf("%s is absent if the site was never switched", name)
		}
		if slices.Contains(labels, "outcome") {
			expectSame(t, "outcomes", codesIn(row[3]), outcomes)
		}
	}
	expectSame(t, "metrics", named, find(`(?m)^# TYPE (caddy_maintenance_\w+ \w+)$`, all))
	section := readSection(t, "caddyfile.md", "Placeholders")
	named = slices.Sorted(slices.Values(find(`{(http\.maintenance\.\w+)}`, section)))
	expectSame(t, "placeholders", slices.Compact(named), find(`"(http\.maintenance\.\w+)"`, readFile(t, "../outcome.go")))
	values := readTable(t, section, "value", 1)
	values = slices.DeleteFunc(values, func(row []string) bool { return row[0] == "empty" })
	expectSame(t, "values of the placeholder", firstCodes(values), outcomes)
}

var logCall = regexp.MustCompile(`^(\t+)(.*?)\.(Debug|Info|Warn|Error|logChange)\("(.*?)"[,)](.*)`)

// handlerFiles are those whose lines go to the handler's log.
var handlerFiles = []string{"maintenance.go", "bypass.go", "template.go"}

// loggedFields returns what the module logs, and with which fields; … in a message stands
// for what is known only when it is logged.
func loggedFields(t *testing.T) map[string][]string {
	t.Helper()
	lines := make(map[string][]string)
	paths, _ := filepath.Glob("../*.go")
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		source := strings.Split(readFile(t, path), "\n")
		for i := range source {
			call := logCall.FindStringSubmatch(source[i])
			if call == nil {
				continue
			}
			for _, more := range source[i+1:] { // to its end
				if !strings.HasPrefix(more, call[1]+"\t") {
					break
				}
				call[5] += more
			}
			logger, level := "maintenance", strings.ToLower(call[3])
			if slices.Contains(handlerFiles, filepath.Base(path)) {
				logger = "http.handlers.maintenance"
			}
			if level == "logchange" {
				level = "info"
			}
			message := regexp.MustCompile(`"\+.*?\+"`).ReplaceAllString(call[4], "…")
			fields := find(`zap\.\w+\("(\w+)"`, call[5])
			if strings.Contains(call[5], "zap.Error(") {
				fields = append(fields, "error")
			}
			lines[logger+" "+level+" "+message] = fields
		}
	}
	return lines
}

func TestReferenceHasEveryLogLineAndEvent(t *testing.T) {
	lines := loggedFields(t)
	var named []string
	for n, logger := range []string{"maintenance", "http.handlers.maintenance"} {
		for message, row := range rowOfEach(readTable(t, readSection(t, "monitoring.md", "Log"), "message", n+1)) {
			name := logger + " " + row[1] + " " + message
			named = append(named, name)
			for _, field := range lines[name] {
				if !slices.Contains(codesIn(row[2]), field) {
					t.Errorf("%s: the reference does not have its field %s", name, field)
				}
			}
		}
	}
	expectSame(t, "log", named, slices.Collect(maps.Keys(lines)))

	section := readSection(t, "monitoring.md", "Events")
	expectSame(t, "events", firstCodes(readTable(t, section, "event", 1)), find(`emitLater\("(\w+)"`, readFile(t, "../notify.go")))
	expectSame(t, "data of events", slices.Collect(maps.Keys(rowOfEach(readTable(t, section, "data", 1)))), find(`"(\w+)": `, readFile(t, "../events.go")))
}

// Promises

func TestReferenceNamesTheTestsOfEachPromise(t *testing.T) {
	held := make(map[string][]string) // by promise
	var tests []string
	mark := regexp.MustCompile(`(?m)^// (G\d+(?:, G\d+)*)\b.*\n(?://.*\n)*(?:func (\w+)\()?`)
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if !strings.HasSuffix(path, "_test.go") {
			return err
		}
		content := readFile(t, path)
		tests = append(tests, find(`(?m)^func ((?:Test|Benchmark)\w+)\(`, content)...)
		for _, match := range mark.FindAllStringSubmatch(content, -1) {
			if match[2] == "" {
				t.Errorf("%s: what holds %s is no test", path, match[1])
			}
			for promise := range strings.SplitSeq(match[1], ", ") {
				held[promise] = append(held[promise], match[2])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var promised []string
	for _, promise := range strings.Split(readSection(t, "guarantees.md", "What can be relied on"), "\n### ")[1:] {
		name, text, _ := strings.Cut(promise, "\n")
		promised = append(promised, name)
		named := find("`((?:Test|Benchmark)\\w+)`", text)
		if len(named) == 0 {
			t.Errorf("%s: the reference names no test", name)
		}
		if marked := held[name]; len(marked) > 0 {
			expectSame(t, name, named, marked)
		}
		for _, test := range named {
			if !slices.Contains(tests, test) {
				t.Errorf("%s: the reference has %s, which does not exist", name, test)
			}
		}
	}
	for name := range held {
		if !slices.Contains(promised, name) {
			t.Errorf("the reference does not have %s", name)
		}
	}
}

// What each client gets

func TestReferenceTellsWhatEachClientGets(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	shop := newSite(t, "shop", newApp(t, upstream.ServeHTTP))
	c := newCaddy(t)
	c.options = "servers {\n protocols h1 h2c\n}"
	shop.directives = "log {\n output file access.log\n}\n log_append outcome {http.maintenance.outcome}"
	shop.block = "{\n bypass /healthz\n}"
	c.start(c.caddyfile(shop))

	clients := blockedClients(t, c, shop)
	maps.Copy(clients, lastingClients(t, c, shop, upstream))
	rows := readTable(t, readSection(t, "responses.md", "What each client gets"), "client", 1)
	var named []string
	for n, row := range rows {
		named = append(named, row[0])
		client := clients[row[0]]
		if client == nil {
			continue // which is said below
		}
		if got := client("?client=" + strconv.Itoa(n)); got != row[2] {
			t.Errorf("%s gets %q, and not %q", row[0], got, row[2])
		}
		if row[3] == "no line" {
			continue // as there is none either after the next client, whose line is awaited
		}
		uri := fmt.Sprintf("?client=%d\"", n)
		line := find(`(?m)^(.*`+regexp.QuoteMeta(uri)+`.*)\n`, c.awaitFile("access.log", uri))[0]
		var got struct{ Level, Maintenance, Outcome string }
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(line, err)
		}
		want := got
		want.Level, want.Maintenance = "info", strings.Trim(row[3], "`")
		want.Outcome = want.Maintenance
		if outcome, differs := otherOutcomes[row[0]]; differs {
			want.Outcome = outcome
		}
		if got != want {
			t.Errorf("%s is logged as %+v, and not as %+v", row[0], got, want)
		}
	}
	expectSame(t, "clients", named, slices.Collect(maps.Keys(clients)))

	content := readFile(t, filepath.Join(c.dir, "access.log"))
	for n, row := range rows {
		if row[3] == "no line" && strings.Contains(content, fmt.Sprintf("?client=%d\"", n)) {
			t.Errorf("%s is in the access log", row[0])
		}
	}
	values := firstCodes(readTable(t, readSection(t, "monitoring.md", "Log"), "value", 1))
	expectSame(t, "values in the access log", values, find(`"maintenance":"(\w+)"`, content))
}

// otherOutcomes are those that differ from the field in the access log.
var otherOutcomes = map[string]string{
	"held, and the site opens": "released",
	"held, and has left":       "",
	"terminated in the middle": "",
	"WebSocket, terminated":    "",
}

// client is somebody who asks for a path that ends in ?client=<n>.
type client func(path string) (gets string)

const testBrowser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"

// blockedClients are those who get an answer while the site is in maintenance.
func blockedClients(t *testing.T, c *caddy, shop site) map[string]client {
	asking := func(by *http.Client, options, method, path, body string, header ...string) client {
		return func(query string) string {
			c.on("shop", options)
			return describe(t, ask(by, method, shop.url()+path+query, strings.NewReader(body), header...))
		}
	}
	get := func(header ...string) client { return asking(visitors, "", http.MethodGet, "", "", header...) }
	openLink := func(query string) answer {
		c.on("shop", `{"bypass_secret": "`+testSecret+`"}`)
		return ask(visitors, http.MethodGet, shop.url()+".maintenance/"+testSecret+query, nil)
	}
	return map[string]client{
		"browser":             get("Accept", testBrowser),
		"curl":                get("Accept", "*/*"),
		"no `Accept`":         get(),
		"fetch() in a page":   get("Accept", "*/*", "Sec-Fetch-Dest", "empty"),
		"JSON client":         get("Accept", "application/json, text/plain, */*"),
		"plain text":          get("Accept", "text/plain"),
		"image":               get("Accept", "image/avif,image/webp,*/*;q=0.8"),
		"style sheet":         get("Accept", "text/css,*/*;q=0.1"),
		"script":              get("Accept", "*/*", "Sec-Fetch-Dest", "script"),
		"event stream":        get("Accept", "text/event-stream"),
		"part of a file":      get("Range", "bytes=0-9", "If-None-Match", `"x"`),
		"WebSocket":           get("Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13"),
		"HEAD":                asking(visitors, "", http.MethodHead, "", ""),
		"OPTIONS":             asking(visitors, "", http.MethodOptions, "", "", "Accept", "*/*", "Origin", "https://other.example.com"),
		"POST":                asking(visitors, "", http.MethodPost, "", "item=1"),
		"matched by a bypass": asking(visitors, "", http.MethodGet, "healthz", ""),
		"held for too long":   asking(visitors, `{"hold": "1ms"}`, http.MethodGet, "", ""),
		"gRPC": asking(newKeepAliveClient(false), "", http.MethodPost, "", "x",
			"Content-Type", "application/grpc", "Te", "trailers"),
		"HTTP/1.0": func(query string) string {
			c.on("shop", "")
			_, response := shop.converse(t, "GET /"+query+" HTTP/1.0\r\n\r\n")
			return describe(t, answerOf(response, nil))
		},
		"POST that asks first": func(query string) string {
			c.on("shop", "")
			_, response := shop.converse(t, "POST /"+query+" HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 6\r\n\r\n")
			gets := describe(t, answerOf(response, nil))
			if response.Close {
				gets += ", and the connection is closed: no body is read"
			}
			return gets
		},
		"opens the secret link": func(query string) string {
			got := openLink(query)
			return strings.Replace(fmt.Sprint(got.code, " and ", len(got.header["Set-Cookie"])), "1", "the cookie", 1)
		},
		"has the cookie": func(query string) string {
			cookie, _, _ := strings.Cut(openLink("").header.Get("Set-Cookie"), ";")
			return describe(t, ask(visitors, http.MethodGet, shop.url()+query, nil, "Cookie", cookie))
		},
	}
}

// lastingClients are those for whom something changes while they wait.
func lastingClients(t *testing.T, c *caddy, shop site, upstream *patientApp) map[string]client {
	const cut = `{"terminate_after": "1ms"}`
	slow := func(query string, change func()) string {
		c.off("shop")
		result := send(visitors, shop.url()+"slow"+query)
		upstream.awaitReached(t)
		change()
		return describe(t, <-result)
	}
	return map[string]client{
		"held, and the site opens": func(query string) string {
			c.on("shop", `{"hold": "5m"}`)
			result := send(visitors, shop.url()+query)
			awaitHeld(t, c, "shop", 1)
			c.off("shop")
			return describe(t, <-result)
		},
		"held, and has left": func(query string) string {
			c.on("shop", `{"hold": "5m"}`)
			conn := shop.open(t, "GET /"+query+" HTTP/1.1\r\n\r\n")
			awaitHeld(t, c, "shop", 1)
			conn.Close()
			awaitHeld(t, c, "shop", 0)
			return "nothing"
		},
		"let in before": func(query string) string {
			return slow(query, func() { c.on("shop", ""); upstream.release <- struct{}{} })
		},
		"terminated, nothing sent": func(query string) string { return slow(query, func() { c.on("shop", cut) }) },
		"terminated in the middle": func(query string) string {
			c.off("shop")
			response, err := visitors.Get(shop.url() + "stream" + query)
			if err != nil {
				t.Fatal(err)
			}
			upstream.awaitReached(t)
			c.on("shop", cut)
			if got := answerOf(response, nil); got.code != http.StatusOK || got.body == "" || got.err == nil {
				return "all"
			}
			return "what was sent, and then it breaks off"
		},
		"WebSocket, terminated": func(query string) string {
			c.off("shop")
			reader, response := shop.converse(t, "GET /socket"+query+" HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			if response.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(response)
			}
			c.on("shop", cut)
			if _, err := reader.ReadByte(); err == nil || os.IsTimeout(err) {
				return "more"
			}
			return "the end of its connection"
		},
	}
}

// converse sends a request, without its Host, on a connection of its own, and returns the
// response, and what comes after it.
func (s site) converse(t *testing.T, request string) (*bufio.Reader, *http.Response) {
	t.Helper()
	reader := bufio.NewReader(s.open(t, request))
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	return reader, response
}

// describe says what an answer is, in the words of the reference.
func describe(t *testing.T, got answer) string {
	t.Helper()
	said := fmt.Sprintf("%d %s", got.code, got.header.Get("Content-Type"))
	switch {
	case got.err != nil:
		return got.err.Error()
	case got.code == http.StatusOK && got.body == "Welcome.\n":
		said = "the app's answer"
		if caching := got.header.Get("Cache-Control"); caching != "" {
			said += ", Cache-Control: " + caching
		}
	case got.body == "":
		said += ", without a body"
	}
	for name, want := range map[string]string{
		"Retry-After": "300", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "Vary": "Accept, Accept-Encoding",
	} {
		if value := got.header.Get(name); got.code == http.StatusServiceUnavailable && value != want {
			t.Errorf("the 503 has %s: %s, want %s", name, value, want)
		}
	}
	return said
}

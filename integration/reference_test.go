package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
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
)

// The tests here compare docs/reference.md with the module: what is missing in it, and
// what it makes up, is an error.

// readReference returns a part of the reference, which begins with a heading such as
// "## Command" and ends with the next one of its level.
func readReference(t *testing.T, heading string) string {
	t.Helper()
	content, err := os.ReadFile("../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, found := strings.Cut(string(content), "\n"+heading+"\n")
	if !found {
		t.Fatalf("reference.md has no %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	part, _, _ = strings.Cut(part, "\n"+level+" ")
	return part
}

// readTable returns the rows of the n-th table whose first column is called so.
func readTable(t *testing.T, part, column string, n int) [][]string {
	t.Helper()
	tables := strings.Split(part, "\n| "+column+" |")
	if len(tables) <= n {
		t.Fatalf("reference.md has no table %d of %q", n, column)
	}
	var rows [][]string
	for i, line := range strings.Split(tables[n], "\n") {
		if i < 2 { // the rest of its head
			continue
		}
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

var codes = regexp.MustCompile("`` ?(.+?) ?``|`([^`]+)`")

// codesIn returns what is written as code.
func codesIn(text string) []string {
	var list []string
	for _, match := range codes.FindAllStringSubmatch(text, -1) {
		list = append(list, match[1]+match[2])
	}
	return list
}

// code returns the first code of a cell, without what follows a space.
func code(cell string) string {
	for _, text := range codesIn(cell) {
		word, _, _ := strings.Cut(text, " ")
		return word
	}
	return ""
}

// firstCodes returns the names that a table is about.
func firstCodes(rows [][]string) []string {
	var names []string
	for _, row := range rows {
		names = append(names, code(row[0]))
	}
	return names
}

// expectSame compares what the reference names with what there is, in any order.
func expectSame(t *testing.T, what string, named, real []string) {
	t.Helper()
	for _, name := range named {
		if !slices.Contains(real, name) {
			t.Errorf("%s: the reference has %q, which does not exist", what, name)
		}
	}
	for _, name := range real {
		if !slices.Contains(named, name) {
			t.Errorf("%s: the reference does not have %q", what, name)
		}
	}
	if sorted := slices.Sorted(slices.Values(named)); len(slices.Compact(sorted)) != len(named) {
		t.Errorf("%s: the reference has something twice: %q", what, named)
	}
}

// Configuration

func TestReferenceHasEveryFieldOfTheConfig(t *testing.T) {
	part := readReference(t, "## JSON")
	for i, where := range []struct{ file, typeName string }{{"../maintenance.go", "Handler"}, {"../app.go", "App"}} {
		expectSame(t, where.typeName, firstCodes(readTable(t, part, "field", i+1)), jsonNames(t, where.file, where.typeName))
	}
}

// jsonNames returns the names that the fields of a struct have in JSON.
func jsonNames(t *testing.T, file, typeName string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(parsed, func(node ast.Node) bool {
		spec, ok := node.(*ast.TypeSpec)
		if !ok || spec.Name.Name != typeName {
			return true
		}
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			if field.Tag == nil {
				continue
			}
			tag, _ := strconv.Unquote(field.Tag.Value)
			name, _, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
			names = append(names, name)
		}
		return false
	})
	return names
}

func TestReferenceHasEverySubdirective(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	for _, test := range []struct{ heading, column, caddyfile string }{
		{"## Directive", "subdirective", ":80 {\n maintenance shop {\n  nonsense\n }\n}\n"},
		{"## Global option", "option", "{\n maintenance {\n  nonsense\n }\n}\n"},
	} {
		_, list, _ := strings.Cut(c.refusal(test.caddyfile), "maintenance knows ")
		list, _, _ = strings.Cut(list, ", at ")
		known := strings.Split(strings.ReplaceAll(list, " and ", ", "), ", ")
		part := readReference(t, test.heading)
		expectSame(t, test.heading, firstCodes(readTable(t, part, test.column, 1)), known)
		_, syntax, _ := strings.Cut(part, "```text\n")
		syntax, _, _ = strings.Cut(syntax, "```")
		var shown []string
		for _, match := range regexp.MustCompile(`(?m)^\t+([a-z_]+) .*[^{]$`).FindAllStringSubmatch(syntax, -1) {
			shown = append(shown, match[1])
		}
		expectSame(t, test.heading, shown, known)
	}
}

func TestReferenceTellsHowWrongConfigsAreRefused(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	for _, test := range []struct{ heading, caddyfile, option string }{
		{"## Directive", ":80 {\n%s\n}\n", "maintenance shop {\n %s\n}"},
		{"## Global option", "{\n%s\n}\n", "maintenance {\n %s\n}"},
	} {
		rows := readTable(t, readReference(t, test.heading), "written", 1)
		if len(rows) == 0 {
			t.Errorf("%s: nothing is refused", test.heading)
		}
		for _, row := range rows {
			written, want := strings.Trim(row[0], "`"), strings.Trim(row[1], "`")
			text := written
			if !strings.HasPrefix(written, "maintenance") {
				text = fmt.Sprintf(test.option, written)
			}
			got := c.refusal(fmt.Sprintf(test.caddyfile, text))
			placed := strings.Contains(got, want+", at ") || strings.Contains(got, want+" at ")
			if strings.HasPrefix(written, "page /") || strings.HasPrefix(want, "did you mean") {
				placed = strings.Contains(got, want) // the file has to be looked for when the config is loaded
			}
			if !placed {
				t.Errorf("%s is refused with %q, and not with %q", written, got, want)
			}
		}
	}
}

// refusal returns what is said to be wrong with a Caddyfile, by `caddy adapt` or else by
// `caddy validate`, which loads it.
func (c *caddy) refusal(caddyfile string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, "wrong")
	write(c.t, path, caddyfile)
	got := c.command("adapt", "--adapter", "caddyfile", "--config", path)
	if got.code == 0 {
		if got = c.command("validate", "--adapter", "caddyfile", "--config", path); got.code == 0 {
			c.t.Errorf("not refused:\n%s", caddyfile)
		}
		return got.stderr
	}
	var line struct {
		Message string `json:"msg"`
	}
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &line); err != nil {
		c.t.Errorf("%v: %s", err, got.stderr)
	}
	return line.Message
}

func TestReferenceHasJSONThatLoads(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	_, example, _ := strings.Cut(readReference(t, "## JSON"), "```json\n")
	example, _, _ = strings.Cut(example, "```")
	path := filepath.Join(c.dir, "caddy.json")
	write(t, path, example)
	if got := c.command("validate", "--config", path); got.code != 0 {
		t.Errorf("the JSON is refused: %s", got.stderr)
	}
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

	part := readReference(t, "### Answer")
	options := readTable(t, readReference(t, "### Options"), "option", 1)
	code, answer, err := c.request(http.MethodPut, "/maintenance/shop", `{"nonsense": 1}`)
	if err != nil || code != http.StatusBadRequest {
		t.Fatal(code, answer, err)
	}
	_, list, _ := strings.Cut(strings.Trim(answer, "\"{}\n"), "the options are ")
	expectSame(t, "options", firstCodes(options), strings.Split(list, ", "))

	if err := os.Remove(page); err != nil { // so that there is an error
		t.Fatal(err)
	}
	c.on("shop", `{"message": "Soon.", "retry_after": "1h", "until": "2096-01-31T03:00:00Z", "hold": "1s",
		"terminate_after": "1h", "bypass_secret": "0123456789-ABCDEF"}`)
	var all map[string]any
	var pages []any
	eventually(t, patience, "the page is found to be missing", func() bool {
		all = c.fields("/maintenance/shop")
		pages = all["pages"].([]any)
		return pages[0].(map[string]any)["error"] != nil
	})
	for _, test := range []struct {
		rows     [][]string
		all      map[string]any
		without  map[string]any
		whatever string // a field that may be absent, but is not here
	}{
		{readTable(t, part, "field", 1), all, never, ""},
		{readTable(t, part, "field", 2), pages[0].(map[string]any), never["pages"].([]any)[0].(map[string]any), "fetched_at"},
	} {
		expectSame(t, "answer", firstCodes(test.rows), slices.Collect(maps.Keys(test.all)))
		for _, row := range test.rows {
			name := row[0][1 : len(row[0])-1]
			if got := typeOf(test.all[name]); got != row[1] {
				t.Errorf("%s is a %s in the reference, and a %s in the answer %v", name, row[1], got, test.all)
			}
			_, there := test.without[name]
			if name != test.whatever && there != (row[3] == "") {
				t.Errorf("%s: the reference says of its absence %q, and the answer is %v", name, row[3], test.without)
			}
		}
	}
}

// fields returns what the admin API answers.
func (c *caddy) fields(path string) map[string]any {
	c.t.Helper()
	_, answer, err := c.request(http.MethodGet, path, "")
	var fields map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(answer), &fields)
	}
	if err != nil {
		c.t.Fatal(err, answer)
	}
	return fields
}

func typeOf(value any) string {
	switch value := value.(type) {
	case string:
		if someTime.MatchString(value) {
			return "time"
		}
		return "string"
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
	flag := regexp.MustCompile(`--[a-z-]+|-[a-z],`)
	rows := readTable(t, readReference(t, "## Command"), "flag", 1)
	for what, args := range map[string][]string{"shows": nil, "on": {"on"}, "off": {"off"}} {
		help := c.command(append(append([]string{"maintenance"}, args...), "--help")...).stdout
		_, help, _ = strings.Cut(help, "\nFlags:\n")
		help, _, _ = strings.Cut(help, "\n\n")
		var known, named []string
		for _, name := range flag.FindAllString(help, -1) {
			known = append(known, strings.Trim(name, ","))
		}
		for _, row := range rows {
			if row[1] != "all" && !slices.Contains(strings.Split(strings.ReplaceAll(row[1], "`", ""), ", "), what) {
				continue
			}
			for _, text := range codesIn(row[0]) {
				name, _, _ := strings.Cut(text, " ")
				named = append(named, name)
			}
		}
		expectSame(t, "flags of "+what, named, known)
	}
}

// Metrics, events and log

func TestReferenceHasEveryMetric(t *testing.T) {
	t.Parallel()
	c := newCaddy(t)
	c.start(c.caddyfile(newSite(t, "shop", newApp(t, welcome))))
	part := readReference(t, "## Metrics")
	var named []string
	absent := make(map[string]string)
	for _, row := range readTable(t, part, "name", 1) {
		named = append(named, strings.Join([]string{code(row[0]), row[1], strings.Join(codesIn(row[2]), " ")}, " "))
		absent[code(row[0])] = row[4]
	}

	metrics := func() string {
		_, answer, err := c.request(http.MethodGet, "/metrics", "")
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	eventually(t, patience, "the storage has been looked at", func() bool {
		return strings.Contains(metrics(), "\ncaddy_maintenance_last_sync_timestamp_seconds")
	})
	never := metrics()
	c.on("shop", "")
	all := metrics()
	var known []string
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (caddy_maintenance_\w+) (\w+)$`).FindAllStringSubmatch(all, -1) {
		name := match[1]
		sample := regexp.MustCompile(`(?m)^` + name + `(?:{(.*)})? `).FindStringSubmatch(all)
		labels := regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(sample[1], -1)
		slices.Reverse(labels) // the site first
		kind := name + " " + match[2] + " "
		for i, label := range labels {
			kind += strings.Repeat(" ", min(i, 1)) + label[1]
		}
		known = append(known, kind)
		if !strings.Contains(never, "\n"+name) && absent[name] == "" {
			t.Errorf("%s is absent if the site was never switched", name)
		}
	}
	expectSame(t, "metrics", named, known)
	var outcomes []string
	for _, match := range regexp.MustCompile(`outcome="(\w+)"`).FindAllStringSubmatch(all, -1) {
		outcomes = append(outcomes, match[1])
	}
	for _, row := range readTable(t, part, "name", 1) {
		if strings.Contains(row[2], "outcome") {
			expectSame(t, "outcomes", codesIn(row[3]), outcomes)
		}
	}
	var values []string
	for _, row := range readTable(t, readReference(t, "## Placeholder"), "value", 1) {
		if row[0] != "empty" {
			values = append(values, code(row[0]))
		}
	}
	expectSame(t, "values of the placeholder", values, outcomes)
}

// logLine is a call that logs.
type logLine struct {
	logger, level, message string
	fields                 []string
}

// logLines returns what the module logs; … in a message stands for what is known only
// when it is logged.
func logLines(t *testing.T) []logLine {
	t.Helper()
	var lines []logLine
	for _, parsed := range parseModule(t, "../*.go") {
		ast.Inspect(parsed, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			line := logLine{logger: "maintenance", level: strings.ToLower(method.Sel.Name)}
			message := call.Args[0]
			switch method.Sel.Name {
			case "Debug", "Info", "Warn", "Error":
				if on, ok := method.X.(*ast.SelectorExpr); ok && fmt.Sprint(on.X) == "h" {
					line.logger = "http.handlers.maintenance"
				}
			case "logChange":
				line.level = "info"
			default:
				return true
			}
			if line.message = textOf(message); !strings.ContainsFunc(line.message, func(r rune) bool { return r != '…' }) {
				return true // what others have said
			}
			ast.Inspect(call, func(node ast.Node) bool {
				if field, ok := node.(*ast.CallExpr); ok {
					if maker, ok := field.Fun.(*ast.SelectorExpr); ok && fmt.Sprint(maker.X) == "zap" {
						switch name := maker.Sel.Name; name {
						case "Error":
							line.fields = append(line.fields, "error")
						default:
							line.fields = append(line.fields, textOf(field.Args[0]))
						}
						return false
					}
				}
				return true
			})
			lines = append(lines, line)
			return true
		})
	}
	return lines
}

// textOf returns a text that is put together of parts.
func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return textOf(e.X) + textOf(e.Y)
	}
	return "…"
}

// parseModule returns the files of a pattern that are not tests.
func parseModule(t *testing.T, pattern string) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("found %q %v", paths, err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, parsed)
	}
	return files
}

func TestReferenceHasEveryLogLine(t *testing.T) {
	lines := logLines(t)
	real := make(map[string]logLine)
	for _, line := range lines {
		real[line.logger+" "+line.level+" "+line.message] = line
	}
	var named []string
	for _, row := range readTable(t, readReference(t, "## Log"), "logger", 1) {
		message := codesIn(row[2])[0]
		name := code(row[0]) + " " + row[1] + " " + message
		named = append(named, name)
		for _, field := range real[name].fields {
			if !slices.Contains(codesIn(row[3]), field) {
				t.Errorf("%s: the reference does not have its field %s", message, field)
			}
		}
	}
	expectSame(t, "log", named, slices.Collect(maps.Keys(real)))
}

func TestReferenceHasEveryEvent(t *testing.T) {
	part := readReference(t, "## Events")
	var events, data []string
	for _, parsed := range parseModule(t, "../notify.go") {
		ast.Inspect(parsed, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && fmt.Sprint(call.Fun) == "emitLater" {
				events = append(events, textOf(call.Args[0]))
			}
			return true
		})
	}
	expectSame(t, "events", firstCodes(readTable(t, part, "event", 1)), events)
	for _, parsed := range parseModule(t, "../events.go") {
		ast.Inspect(parsed, func(node ast.Node) bool {
			if pair, ok := node.(*ast.KeyValueExpr); ok {
				if _, ok := pair.Key.(*ast.BasicLit); ok {
					data = append(data, textOf(pair.Key))
				}
			}
			return true
		})
	}
	expectSame(t, "data of events", firstCodes(readTable(t, part, "data", 1)), data)
}

// Promises

var (
	mark     = regexp.MustCompile(`(?m)^// (G\d+(?:, G\d+)*)\b.*\n(?://.*\n)*(?:func (\w+)\()?`)
	testName = regexp.MustCompile("`((?:Test|Benchmark)\\w+)`")
)

// testFiles returns the files of all tests, in whichever package.
func testFiles(t *testing.T) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, "_test.go") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil || len(paths) == 0 {
		t.Fatalf("found %q %v", paths, err)
	}
	return paths
}

func TestReferenceNamesTheTestsOfEachPromise(t *testing.T) {
	held := make(map[string][]string) // by promise
	var tests []string
	for _, path := range testFiles(t) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range regexp.MustCompile(`(?m)^func ((?:Test|Benchmark)\w+)\(`).FindAllSubmatch(content, -1) {
			tests = append(tests, string(match[1]))
		}
		for _, match := range mark.FindAllSubmatch(content, -1) {
			if len(match[2]) == 0 {
				t.Errorf("%s: what holds %s is no test", path, match[1])
			}
			for promise := range strings.SplitSeq(string(match[1]), ", ") {
				held[promise] = append(held[promise], string(match[2]))
			}
		}
	}

	promises := strings.Split(readReference(t, "## What can be relied on"), "\n### ")[1:]
	var promised []string
	for _, promise := range promises {
		name, text, _ := strings.Cut(promise, "\n")
		promised = append(promised, name)
		var named []string
		for _, match := range testName.FindAllStringSubmatch(text, -1) {
			named = append(named, match[1])
		}
		if len(named) == 0 {
			t.Errorf("%s: the reference names no test", name)
		}
		if marked := held[name]; len(marked) > 0 {
			expectSame(t, name, named, marked)
			continue
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

// client is somebody who asks for a path that ends in ?client=<n>.
type client func(t *testing.T, path string) (gets string)

func TestReferenceTellsWhatEachClientGets(t *testing.T) {
	t.Parallel()
	upstream := newPatientApp(t)
	c := newCaddy(t)
	c.options = "servers {\n protocols h1 h2c\n}"
	shop := newSite(t, "shop", upstream.app)
	log := filepath.Join(c.dir, "access.log")
	shop.directives = fmt.Sprintf("log {\n output file %q\n}\n log_append outcome {http.maintenance.outcome}", log)
	shop.block = "{\n bypass /healthz\n}"
	c.start(c.caddyfile(shop))

	clients := blockedClients(c, shop)
	maps.Copy(clients, lastingClients(c, shop, upstream))
	rows := readTable(t, readReference(t, "## What each client gets"), "client", 1)
	var named []string
	for n, row := range rows {
		named = append(named, row[0])
		client := clients[row[0]]
		if client == nil {
			continue // which is said below
		}
		if got := client(t, "?client="+strconv.Itoa(n)); got != row[2] {
			t.Errorf("%s gets %q, and not %q", row[0], got, row[2])
		}
		if row[3] == "no line" {
			continue // as there is none either after the next client, whose line is awaited
		}
		got := accessLogLine(t, log, n)
		if want := strings.Join(codesIn(row[3]), ""); got.Maintenance != want {
			t.Errorf("%s is logged as %q, and not as %q", row[0], got.Maintenance, want)
		}
		if want := strings.Join(codesIn(row[4]), ""); got.Outcome != want {
			t.Errorf("%s has the outcome %q, and not %q", row[0], got.Outcome, want)
		}
		if got.Level != "info" {
			t.Errorf("%s is logged as %s", row[0], got.Level)
		}
	}
	expectSame(t, "clients", named, slices.Collect(maps.Keys(clients)))

	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for n, row := range rows {
		if row[3] == "no line" && strings.Contains(string(content), fmt.Sprintf("?client=%d\"", n)) {
			t.Errorf("%s is in the access log", row[0])
		}
	}
	var values []string
	for _, match := range regexp.MustCompile(`"maintenance":"(\w+)"`).FindAllSubmatch(content, -1) {
		if value := string(match[1]); !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	expectSame(t, "values in the access log", firstCodes(readTable(t, readReference(t, "## Log"), "value", 1)), values)
}

type accessLog struct {
	Level, Maintenance, Outcome string
	Request                     struct{ URI string }
}

// accessLogLine returns the line of a client, as soon as there is one.
func accessLogLine(t *testing.T, path string, n int) (line accessLog) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("client %d is in the access log", n), func() bool {
		content, _ := os.ReadFile(path)
		for raw := range strings.Lines(string(content)) {
			var l accessLog
			if json.Unmarshal([]byte(raw), &l) == nil && strings.HasSuffix(l.Request.URI, fmt.Sprintf("?client=%d", n)) {
				line = l
				return true
			}
		}
		return false
	})
	return line
}

// blockedClients are those who get an answer while the site is in maintenance.
func blockedClients(c *caddy, shop site) map[string]client {
	ask := func(method, body string, header ...string) client {
		return func(t *testing.T, path string) string {
			c.on("shop", "")
			return outcomeOf(t, visitors, shop, method, path, body, header...)
		}
	}
	get := func(header ...string) client { return ask(http.MethodGet, "", header...) }
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
	const secret = "0123456789-ABCDEF"
	link := func(t *testing.T, path string) *http.Response {
		c.on("shop", `{"bypass_secret": "`+secret+`"}`)
		client := &http.Client{
			Transport:     visitors.Transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		response, err := client.Get(shop.url() + ".maintenance/" + secret + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response
	}
	return map[string]client{
		"browser":              get("Accept", browser),
		"curl":                 get("Accept", "*/*"),
		"one without `Accept`": get(),
		"fetch() in a page":    get("Accept", "*/*", "Sec-Fetch-Dest", "empty"),
		"JSON client":          get("Accept", "application/json, text/plain, */*"),
		"plain text":           get("Accept", "text/plain"),
		"image":                get("Accept", "image/avif,image/webp,*/*;q=0.8"),
		"style sheet":          get("Accept", "text/css,*/*;q=0.1"),
		"script":               get("Accept", "*/*", "Sec-Fetch-Dest", "script"),
		"event stream":         get("Accept", "text/event-stream"),
		"part of a file":       get("Range", "bytes=0-9", "If-None-Match", `"x"`),
		"WebSocket":            get("Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13"),
		"HEAD":                 ask(http.MethodHead, ""),
		"OPTIONS":              ask(http.MethodOptions, "", "Accept", "*/*", "Origin", "https://other.example.com"),
		"POST":                 ask(http.MethodPost, "item=1"),
		"POST that asks first": ask(http.MethodPost, "item=1", "Expect", "100-continue"),
		"matched by a bypass":  func(t *testing.T, path string) string { return ask(http.MethodGet, "")(t, "healthz"+path) },
		"held for too long": func(t *testing.T, path string) string {
			c.on("shop", `{"hold": "1ms"}`)
			return outcomeOf(t, visitors, shop, http.MethodGet, path, "")
		},
		"gRPC": func(t *testing.T, path string) string {
			c.on("shop", "")
			client := newKeepAliveClient(false)
			defer client.CloseIdleConnections()
			return outcomeOf(t, client, shop, http.MethodPost, path, "x", "Content-Type", "application/grpc", "Te", "trailers")
		},
		"HTTP/1.0": func(t *testing.T, path string) string {
			c.on("shop", "")
			conn := dial(t, shop)
			fmt.Fprintf(conn, "GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n", path, shop.address)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			return describe(t, response)
		},
		"opens the secret link": func(t *testing.T, path string) string {
			response := link(t, path)
			if len(response.Cookies()) != 1 {
				return "no cookie"
			}
			return fmt.Sprint(response.StatusCode) + " and the cookie"
		},
		"has the cookie": func(t *testing.T, path string) string {
			cookie := link(t, "").Cookies()[0]
			return outcomeOf(t, visitors, shop, http.MethodGet, path, "", "Cookie", cookie.Name+"="+cookie.Value)
		},
	}
}

// lastingClients are those for whom something changes while they wait.
func lastingClients(c *caddy, shop site, upstream *patientApp) map[string]client {
	const cut = `{"terminate_after": "1ms"}`
	background := func(t *testing.T, ctx context.Context, path string) <-chan string {
		result := make(chan string, 1)
		go func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, shop.url()+path, nil)
			if err != nil {
				panic(err) // the address is ours
			}
			response, err := visitors.Do(r)
			if err != nil {
				result <- "nothing"
				return
			}
			result <- describe(t, response)
		}()
		return result
	}
	held := func(t *testing.T, ctx context.Context, path string) <-chan string {
		c.on("shop", `{"hold": "5m"}`)
		result := background(t, ctx, path)
		eventually(t, patience, "it is held", func() bool { return c.fields("/maintenance/shop")["held"] == 1.0 })
		return result
	}
	slow := func(t *testing.T, path string) <-chan string {
		c.off("shop")
		result := background(t, t.Context(), "slow"+path)
		upstream.awaitReached(t)
		return result
	}
	return map[string]client{
		"held, and the site opens": func(t *testing.T, path string) string {
			result := held(t, t.Context(), path)
			c.off("shop")
			return <-result
		},
		"held, and has left": func(t *testing.T, path string) string {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			result := held(t, ctx, path)
			leave()
			return <-result
		},
		"let in before": func(t *testing.T, path string) string {
			result := slow(t, path)
			c.on("shop", "")
			upstream.release <- struct{}{}
			return <-result
		},
		"cut off, nothing sent": func(t *testing.T, path string) string {
			result := slow(t, path)
			c.on("shop", cut)
			return <-result
		},
		"cut off in the middle": func(t *testing.T, path string) string {
			c.off("shop")
			response, err := visitors.Get(shop.url() + "stream" + path)
			if err != nil {
				t.Fatal(err)
			}
			upstream.awaitReached(t)
			defer response.Body.Close()
			c.on("shop", cut)
			if content, err := io.ReadAll(response.Body); response.StatusCode != http.StatusOK || len(content) == 0 || err == nil {
				return "all"
			}
			return "what was sent, and then it breaks off"
		},
		"WebSocket, cut off": func(t *testing.T, path string) string {
			c.off("shop")
			conn := dial(t, shop)
			fmt.Fprintf(conn, "GET /socket%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path, shop.address)
			reader := bufio.NewReader(conn)
			response, err := http.ReadResponse(reader, nil)
			if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(response, err)
			}
			c.on("shop", cut)
			if _, err := reader.ReadByte(); err == nil || os.IsTimeout(err) {
				return "more"
			}
			return "the end of its connection"
		},
	}
}

// outcomeOf returns what a request is answered with.
func outcomeOf(t *testing.T, client *http.Client, s site, method, path, body string, header ...string) string {
	t.Helper()
	r, err := http.NewRequest(method, s.url()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := client.Do(r)
	if err != nil {
		return err.Error()
	}
	return describe(t, response)
}

// describe says what an answer is, in the words of the reference.
func describe(t *testing.T, response *http.Response) string {
	t.Helper()
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	header := response.Header
	switch {
	case err != nil:
		return err.Error()
	case response.StatusCode == http.StatusOK && string(content) == "Welcome.\n":
		if caching := header.Get("Cache-Control"); caching != "" {
			return "the app's answer, Cache-Control: " + caching
		}
		return "the app's answer"
	case response.StatusCode == http.StatusServiceUnavailable:
		if header.Get("Retry-After") != "300" || header.Get("Cache-Control") != "no-store" || header.Get("X-Content-Type-Options") != "nosniff" ||
			header.Get("Vary") != "Accept, Accept-Encoding" {
			t.Errorf("the 503 has %v", header)
		}
	}
	said := fmt.Sprintf("%d %s", response.StatusCode, header.Get("Content-Type"))
	if len(content) == 0 {
		said += ", without a body"
	}
	if response.Request != nil && response.Request.Header.Get("Expect") != "" && response.Close {
		said += ", and the connection is closed: no body is read"
	}
	return said
}

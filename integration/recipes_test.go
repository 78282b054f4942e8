package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What TestDocs cannot do of docs/recipes.md, as it needs more than caddy and curl.

const recipesPath = "../docs/recipes.md"

// newRecipe returns a reader, and a chapter to do.
func newRecipe(t *testing.T, title string) (*docReader, chapter) {
	t.Helper()
	chapters := readChapters(t, recipesPath)
	i := slices.IndexFunc(chapters, func(c chapter) bool { return c.title == title })
	if i < 0 {
		t.Fatalf("%s has no chapter %q", recipesPath, title)
	}
	return newReader(t), chapters[i]
}

// only returns the one block in this language, whose examples are the reader's from now on.
func (r *docReader) only(c chapter, language string) block {
	r.t.Helper()
	var found []block
	for _, b := range c.blocks {
		if b.language == language {
			found = append(found, b)
		}
	}
	if len(found) != 1 {
		r.t.Fatalf("%q has %d blocks of %s, want one", c.title, len(found), language)
	}
	for _, run := range found[0].runs {
		if with, ok := strings.CutPrefix(run, "with "); ok {
			r.examples = append(r.examples, strings.Split(with, " = ")...)
		}
	}
	return found[0]
}

// must runs a command line that has to succeed, and returns what it prints.
func (r *docReader) must(line string) string {
	r.t.Helper()
	printed := r.run(line)
	if r.code != 0 {
		r.t.Errorf("%s: exit status %d, %s", line, r.code, printed)
	}
	return printed
}

// The list at the beginning has all chapters, in their order, and all links of the
// documentation lead somewhere.
func TestRecipeLinks(t *testing.T) {
	content, err := os.ReadFile(recipesPath)
	if err != nil {
		t.Fatal(err)
	}
	text := string(content)
	list, _, _ := strings.Cut(text, "\n## ")
	var listed []string
	for _, link := range regexp.MustCompile(`(?m)^- \[.*\]\((#.*)\)$`).FindAllStringSubmatch(list, -1) {
		listed = append(listed, link[1])
	}
	if chapters := anchors(t, recipesPath, "## "); !slices.Equal(listed, chapters) {
		t.Errorf("listed are\n%s\nand there are\n%s", strings.Join(listed, "\n"), strings.Join(chapters, "\n"))
	}

	for _, from := range []string{"../README.md", recipesPath, "../docs/troubleshooting.md", "../docs/reference.md"} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(\s*([^)#]*)(#[^)]*)?\)`).FindAllStringSubmatch(string(content), -1) {
			path := from
			switch {
			case strings.Contains(link[1], "://"):
				continue
			case link[1] != "":
				path = filepath.Join(filepath.Dir(from), link[1])
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", from, err)
			} else if link[2] != "" && !slices.Contains(anchors(t, path, "#"), link[2]) {
				t.Errorf("%s: %s has no %s", from, path, link[2])
			}
		}
	}
}

// anchors returns where links to the headings of a file lead that begin with this.
func anchors(t *testing.T, path, prefix string) (found []string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, prefix) {
			title := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
			title = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(title, "")
			found = append(found, "#"+strings.ReplaceAll(title, " ", "-"))
		}
	}
	return found
}

// A header field that the app sets too does not come twice.
func TestRecipeCORSLeavesTheHeadersOfTheApp(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "A browser app on another origin (CORS)")
	r.app = newApp(t, func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://app.example.com")
		welcome(w, request)
	})
	r.load(r.only(c, "caddyfile"))
	got := r.must("curl -i https://api.example.com/")
	if !strings.Contains(got, "access-control-allow-origin: https://app.example.com\n") || strings.Count(got, "allow-origin") != 1 {
		t.Errorf("got %s", got)
	}
}

// systemd

// service is an app that can be stopped and started.
type service struct {
	t       *testing.T
	address string
	server  *http.Server
	warming atomic.Int32  // health checks that it still fails
	reached chan struct{} // by what does not end
}

func (s *service) start() {
	s.t.Helper()
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.warming.Store(2)
	s.server = &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/endless" {
			close(s.reached)
			<-r.Context().Done()
			return
		}
		if s.warming.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, "Welcome to the shop.")
	})}
	go func() { _ = s.server.Serve(listener) }()
	s.t.Cleanup(s.stop)
}

func (s *service) stop() { _ = s.server.Close() }

// execLines returns the command lines of a unit for this setting.
func execLines(unit, setting string) (lines []string) {
	for _, match := range regexp.MustCompile(`(?m)^`+setting+`=(.+)$`).FindAllStringSubmatch(unit, -1) {
		lines = append(lines, match[1])
	}
	return lines
}

// execute runs the lines as systemd does: it goes on where a failure is marked as no
// matter, and returns whether all went well otherwise.
func (r *docReader) execute(lines []string) bool {
	for _, line := range lines {
		command, ignored := strings.CutPrefix(line, "-")
		if _, code := r.runOne(strings.TrimPrefix(r.local(command), "/usr/bin/")); code != 0 && !ignored {
			return false
		}
	}
	return true
}

func TestRecipeSystemd(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "systemd: hold while a service restarts")
	shop := &service{t: t, address: freeAddress(t)}
	shop.start()
	r.examples = append(r.examples, "localhost:9000", shop.address)
	r.load(r.only(c, "caddyfile"))
	unit := r.only(c, "ini").text
	stop, stopped, start := execLines(unit, "ExecStop"), execLines(unit, "ExecStopPost"), execLines(unit, "ExecStartPost")
	if len(stop) != 1 || len(stopped) != 1 || len(start) != 2 {
		t.Fatalf("got %q, %q and %q", stop, stopped, start)
	}
	do := func(lines []string) {
		t.Helper()
		if !r.execute(lines) {
			t.Errorf("%q failed", lines)
		}
	}
	restart := func() {
		t.Helper()
		do(stop)
		shop.stop()
		do(stopped)
		shop.start()
		do(start)
	}
	expectEnd := func() {
		t.Helper()
		if left := time.Until(r.caddy.status("shop-restart").Until); left < 9*time.Minute || left > 10*time.Minute {
			t.Errorf("it ends by itself in %s", left)
		}
	}
	// A visitor who comes while the app is down waits for the one that is started.
	expectPause := func() {
		t.Helper()
		expectEnd()
		r.run("curl https://shop.example.com/ &")
		started := make(chan bool)
		go func() { started <- r.execute(start) }()
		shop.start()
		if !<-started {
			t.Errorf("%q failed", start)
		}
		if got := <-r.background[0]; got != "Welcome to the shop.\n" {
			t.Errorf("who was held got %q", got)
		}
		r.background = nil
		if left := shop.warming.Load(); left >= 0 {
			t.Errorf("who was held was let in when the app was not ready")
		}
	}

	// A restart, or a stop and a start.
	do(stop)
	expectEnd()
	shop.stop()
	do(stopped)
	expectPause()

	// A crash, after which systemd runs no ExecStop=.
	shop.stop()
	if got := r.must("curl -o /dev/null -w '%{http_code}' https://shop.example.com/"); got != "502" {
		t.Errorf("right after a crash a visitor got %s", got)
	}
	do(stopped)
	expectPause()

	// What somebody has closed by hand is left closed.
	r.must("caddy maintenance on shop")
	restart()
	if got := r.must("caddy maintenance shop"); got != "on\n" {
		t.Errorf("after a restart shop is %s", got)
	}

	// Without Caddy the app is restarted all the same.
	r.caddy.kill()
	restart()
}

// cron

// crontab returns the settings of a crontab, and the commands of its lines.
func crontab(text string) (settings, commands []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		entry := regexp.MustCompile(`^(?:[-*/,0-9]+ +){5}(.*)$`).FindStringSubmatch(line)
		switch {
		case line == "" || line[0] == '#':
		case entry != nil:
			commands = append(commands, strings.ReplaceAll(entry[1], "%", "\n"))
		default:
			settings = append(settings, line)
		}
	}
	return settings, commands
}

func TestRecipeCron(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "cron: a maintenance window")
	r.load(r.only(c, "caddyfile"))
	settings, commands := crontab(r.only(c, "crontab").text)
	if len(commands) != 2 {
		t.Fatalf("got %q", commands)
	}
	bin := filepath.Join(r.caddy.dir, "bin")
	backup := func(exitStatus int) {
		t.Helper()
		path := filepath.Join(bin, "backup-shop")
		write(t, path, fmt.Sprintf("#!/bin/sh\ncaddy maintenance shop-backup >%s/state-at-backup\nexit %d\n", bin, exitStatus))
		if err := os.Chmod(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	backup(0)
	if err := os.Symlink(binary, filepath.Join(bin, "caddy")); err != nil {
		t.Fatal(err)
	}
	cron := func(command string) (mail string, code int) {
		t.Helper()
		cmd := exec.Command("/bin/sh", "-c", command)
		cmd.Dir = r.caddy.dir
		cmd.Env = []string{
			"HOME=" + r.caddy.dir, "LOGNAME=root", "SHELL=/bin/sh",
			"CADDY_ADMIN=" + r.caddy.admin, "GORACE=atexit_sleep_ms=0", // not cron's
		}
		for _, setting := range settings {
			cmd.Env = append(cmd.Env, strings.ReplaceAll(setting, "/usr/local/bin", bin))
		}
		raw, _ := cmd.CombinedOutput()
		checkRaces(t, string(raw))
		return string(raw), cmd.ProcessState.ExitCode()
	}

	migration := r.caddy.on("shop", `{"message": "Moving house."}`) // which is left alone
	if mail, code := cron(commands[0]); mail != "" || code != 0 {
		t.Errorf("%s: %d %s", commands[0], code, mail)
	}
	got := r.caddy.status("shop-window")
	if left := time.Until(got.Until); got.State != "on" || got.Message != "Back at three." || left < 59*time.Minute || left > time.Hour {
		t.Errorf("got %+v", got)
	}

	if mail, code := cron(commands[1]); mail != "" || code != 0 {
		t.Errorf("%s: %d %s", commands[1], code, mail)
	}
	if state, err := os.ReadFile(filepath.Join(bin, "state-at-backup")); string(state) != "on\n" {
		t.Errorf("at the backup the shop was %q %v", state, err)
	}
	if got := r.caddy.status("shop-backup"); got.State != "off" {
		t.Errorf("after it got %+v", got)
	}

	backup(1)
	if mail, code := cron(commands[1]); mail != "" || code != 1 {
		t.Errorf("%s: %d %s", commands[1], code, mail)
	}
	if got := r.caddy.status("shop-backup"); got.State != "on" || !got.Until.IsZero() {
		t.Errorf("after a backup that failed got %+v", got)
	}
	if got := r.caddy.status("shop"); !got.sameSwitch(migration) {
		t.Errorf("a migration was %+v and is %+v", migration, got)
	}

	r.caddy.kill()
	for _, command := range commands {
		if mail, code := cron(command); !strings.HasPrefix(mail, "Error: Caddy cannot be reached") || code != 1 {
			t.Errorf("%s without Caddy: %d %s", command, code, mail)
		}
	}
}

// Containers

func TestRecipeContainer(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "A container")
	r.caddy.storage = "" // it is in the data directory, as /data is in the container
	caddyfile := r.only(c, "caddyfile")
	session := r.only(c, "shell-session")

	steps := strings.Split("\n"+session.text, "\n$ docker compose up -d")
	if len(steps) != 3 || steps[0] != "" {
		t.Fatalf("got %q", steps)
	}
	for _, step := range steps[1:] {
		how, commands, _ := strings.Cut(step, "\n")
		if how != "" && how != " --force-recreate" {
			t.Fatalf("docker compose up -d%s", how)
		}
		r.caddy.kill()
		r.load(caddyfile)
		commands = strings.ReplaceAll(commands, "$ docker compose exec caddy ", "$ ")
		r.console(block{place: session.place, text: strings.TrimSuffix(commands, "\n") + "\n"})
	}
	if got := r.must("curl -o /dev/null -w '%{http_code}' https://shop.example.com/"); got != "503" {
		t.Errorf("a visitor got %s", got)
	}

	// The other way to say it.
	r.must("caddy maintenance off shop")
	docker := regexp.MustCompile(`(?m)^docker exec caddy (caddy .*)$`).FindStringSubmatch(r.only(c, "sh").text)
	if docker == nil {
		t.Fatal("no docker exec")
	}
	r.must(docker[1])

	// Without the volume.
	r.caddy.kill()
	if err := os.RemoveAll(filepath.Join(r.caddy.dir, "data")); err != nil {
		t.Fatal(err)
	}
	r.load(caddyfile)
	if got := r.must("caddy maintenance shop"); got != "off\n" {
		t.Errorf("with no data the shop is %s", got)
	}
}

// label is one of caddy-docker-proxy's, with those below it.
type label struct {
	words    []string
	order    int
	children []*label
}

// labelPart is one part of a label's name: 1_name, name or name_1.
var labelPart = regexp.MustCompile(`^(?:(\d+)_)?(.+?)(?:_(\d+))?$`)

// caddyfileOf makes a Caddyfile of labels as caddy-docker-proxy does: "Keys are the
// directive name, and values are whitespace separated arguments"; "Dots represent
// nesting, and grouping is done automatically"; "Directives from labels are ordered
// alphabetically by default"; "Suffix _<number> isolates directives"; "Prefix <number>_
// isolates directives but also defines a custom ordering".
func caddyfileOf(labels [][2]string) string {
	known := map[string]*label{"": {}}
	var find func(path string) *label
	find = func(path string) *label {
		if l := known[path]; l != nil {
			return l
		}
		parent, name := "", path
		if i := strings.LastIndex(path, "."); i >= 0 {
			parent, name = path[:i], path[i+1:]
		}
		part := labelPart.FindStringSubmatch(name)
		l := &label{order: 1 << 30}
		if part[1] != "" {
			l.order, _ = strconv.Atoi(part[1])
		}
		if parent != "" { // the first part is that of all labels
			l.words = []string{part[2]}
		}
		above := find(parent)
		above.children = append(above.children, l)
		known[path] = l
		return l
	}
	for _, pair := range labels {
		l := find(pair[0])
		l.words = append(l.words, strings.Fields(pair[1])...)
	}
	var text strings.Builder
	var print func(l *label, indent string)
	print = func(l *label, indent string) {
		slices.SortStableFunc(l.children, func(a, b *label) int {
			return cmp.Or(cmp.Compare(a.order, b.order), slices.Compare(a.words, b.words))
		})
		for _, child := range l.children {
			text.WriteString(indent + strings.Join(child.words, " "))
			if len(child.children) > 0 {
				text.WriteString(" {\n")
				print(child, indent+"\t")
				text.WriteString(indent + "}")
			}
			text.WriteString("\n")
		}
	}
	print(known[""], "")
	return text.String()
}

// TestDocs runs the Caddyfile.
func TestRecipeDockerProxyLabels(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "Labels of caddy-docker-proxy")
	_, lines, ok := strings.Cut(r.only(c, "yaml").text, "    labels:\n")
	if !ok {
		t.Fatal("no labels")
	}
	var labels [][2]string
	for line := range strings.Lines(lines) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || !strings.HasPrefix(line, "      ") || !strings.HasPrefix(name, "caddy") {
			t.Fatalf("%q is no label", line)
		}
		value = strings.ReplaceAll(strings.Trim(value, `"`), "{{upstreams 9000}}", "172.18.0.3:9000")
		labels = append(labels, [2]string{name, value})
	}
	if got, want := caddyfileOf(labels), r.only(c, "caddyfile").text; got != want {
		t.Errorf("the labels become\n%s\nand the text has\n%s", got, want)
	}
}

// Alerts

// What the rules do is tested by promtool.
func TestRecipeAlerts(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "Alerts")
	rules := r.only(c, "yaml").text
	file, err := os.ReadFile("../docs/recipes/alerts.yml")
	if err != nil || string(file) != rules {
		t.Errorf("alerts.yml is not what the text shows: %v\n%s", err, file)
	}
	tests, err := os.ReadFile("../docs/recipes/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, alert := range regexp.MustCompile(`- alert: (\w+)\n`).FindAllStringSubmatch(rules, -1) {
		for _, fires := range []string{`\[\]`, `\n +- exp_labels: `} {
			if !regexp.MustCompile(`alertname: ` + alert[1] + `\n +exp_alerts: *` + fires).Match(tests) {
				t.Errorf("alerts_test.yml has no test of %s where exp_alerts is %s", alert[1], fires)
			}
		}
	}

	var queries string
	for _, b := range c.blocks {
		if b.language == "promql" {
			queries += b.text + "\n"
		}
	}
	flat := strings.Join(strings.Fields(string(tests)), " ")
	for query := range strings.SplitSeq(regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(queries, ""), "\n\n") {
		if query = strings.Join(strings.Fields(query), " "); query != "" && !strings.Contains(flat, " "+query+" eval_time: ") {
			t.Errorf("alerts_test.yml has no test of %s", query)
		}
	}

	b := r.only(c, "caddyfile")
	b.text = "{\n\tmetrics {\n\t\tper_host\n\t}\n}\n" + b.text
	r.load(b)
	r.must("caddy maintenance on shop")
	r.must("curl -o /dev/null https://shop.example.com/")
	var metrics string
	eventually(t, patience, "all metrics of the rules and queries are there", func() bool {
		if _, metrics, err = r.caddy.request(http.MethodGet, "/metrics", ""); err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`caddy_maintenance_\w+`).FindAllString(rules+queries, -1) {
			if !regexp.MustCompile(`\n`+name+`{[^}]*site="shop"} `).MatchString(metrics) && !strings.Contains(metrics, "\n"+name+" ") {
				return false
			}
		}
		return regexp.MustCompile(`\ncaddy_http_request_duration_seconds_count{code="503",[^}]*host="shop\.example\.com[:"]`).MatchString(metrics)
	})
}

// The README

// A deploy by the README's script.
func TestReadmeHold(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(content), "\n### Hold\n")
	_, script, ok := strings.Cut(part, "```sh\n")
	script, _, _ = strings.Cut(script, "```")
	lines := strings.Split(strings.TrimSpace(script), " &&\n\t")
	if !ok || len(lines) != 4 || lines[1] != "restart-the-app" {
		t.Fatalf("got %q", lines)
	}

	r, c := newRecipe(t, "Hold requests during a deploy")
	shop := &service{t: t, address: freeAddress(t)}
	shop.start()
	r.examples = append(r.examples, "localhost:9000", shop.address, "--terminate-after 10s", "--terminate-after 1s")
	r.load(r.only(c, "caddyfile"))
	r.must("caddy maintenance on shop")
	shop.warming.Store(0)
	deploy := func() {
		t.Helper()
		for _, line := range lines {
			if line != "restart-the-app" {
				r.must(r.local(line))
				continue
			}
			shop.stop()
			r.run("curl https://shop.example.com/ -H 'Accept: text/plain' &")
			shop.start()
		}
	}

	// Somebody's migration goes on.
	deploy()
	if got := <-r.background[0]; !strings.HasPrefix(got, "This site is down for maintenance") {
		t.Errorf("during a migration a visitor got %q", got)
	}
	r.background = nil
	r.must("caddy maintenance off shop")

	// A request that does not end does not stop the deploy.
	shop.reached = make(chan struct{})
	endless := make(chan string, 1)
	go func() {
		got, _ := r.runOne("curl https://shop.example.com/endless")
		endless <- got
	}()
	<-shop.reached
	deploy()
	if got := <-endless; !strings.HasPrefix(got, "<!DOCTYPE html>") {
		t.Errorf("what did not end got %q", got)
	}
	if got := <-r.background[0]; got != "Welcome to the shop.\n" {
		t.Errorf("who was held got %q", got)
	}
}

// The log

// What docs/troubleshooting.md says to look for in the log is there: in that of the
// instance that is told of a switch, or in that of the one that follows. Its lines have
// the fields that are shown, and no others.
func TestTroubleshootingLog(t *testing.T) {
	t.Parallel()
	const path = "../docs/troubleshooting.md"
	chapters := readChapters(t, path)
	i := slices.IndexFunc(chapters, func(c chapter) bool { return c.title == "What to look for in the log" })
	if i < 0 {
		t.Fatalf("%s has no such chapter", path)
	}
	r := newReader(t)
	c := chapters[i]
	r.do(chapter{blocks: []block{c.blocks[0]}})
	told, follower := r.at("web-1"), r.at("web-2")

	told.must("caddy maintenance on shop --secret 0123456789-ABCDEF")
	told.must("curl -o /dev/null https://shop.example.com/")
	told.must("curl -L -b jar https://shop.example.com/.maintenance/0123456789-ABCDEF")
	eventually(t, patience, "the other follows", func() bool { return follower.must("caddy maintenance shop") == "on\n" })
	r.do(chapter{blocks: []block{c.blocks[0]}})
	eventually(t, patience, "the record is read", func() bool { return told.must("caddy maintenance shop") == "on\n" })
	told.must("caddy maintenance on shop --for 1s")
	logs := make(map[string]string) // by machine
	await := func(machine, what string) {
		t.Helper()
		eventually(t, patience, what+" is logged by "+machine, func() bool {
			for _, machine := range []*docReader{told, follower} {
				content, err := os.ReadFile(machine.caddy.logPath())
				if err != nil {
					t.Fatal(err)
				}
				logs[machine.name] = string(content)
			}
			return strings.Contains(logs[machine], what)
		})
	}
	await("web-1", `"source":"until"`)
	told.caddy.kill() // or it would write the record again
	follower.caddy.kill()
	write(t, filepath.Join(r.mnt, "caddy", "maintenance", "sites", "shop.json"), "{")
	r.do(chapter{blocks: []block{c.blocks[0]}})
	await("web-1", "cannot be read")

	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(content), "\n## "+c.title+"\n")
	part, _, _ = strings.Cut(part, "\n## ")
	rows := readTable(t, part, "search for", 1)
	for _, row := range rows {
		for _, pattern := range codesIn(row[0]) {
			found := exec.Command("grep", pattern)
			found.Stdin = strings.NewReader(logs["web-1"] + logs["web-2"])
			if output, err := found.Output(); err != nil {
				t.Errorf("%s is not in the log: %s %v", pattern, output, err)
			}
		}
	}
	if strings.Contains(logs["web-1"], `"source":"sync"`) || strings.Contains(logs["web-2"], `"source":"api"`) {
		t.Error("who was told, and who followed, is not told apart")
	}

	for _, shown := range c.blocks {
		if shown.language != "json" {
			continue
		}
		for line := range strings.Lines(shown.text) {
			want := fieldsOf(t, line)
			machine := "web-1"
			if strings.Contains(line, `"source":"sync"`) {
				machine = "web-2"
			}
			if !slices.ContainsFunc(strings.Split(strings.TrimSpace(logs[machine]), "\n"), func(line string) bool {
				return slices.Equal(fieldsOf(t, line), want)
			}) {
				t.Errorf("%s has no line such as %s", machine, line)
			}
		}
	}
}

// fieldsOf returns the fields of a line of a log, with the values of some.
func fieldsOf(t *testing.T, line string) (fields []string) {
	t.Helper()
	var values map[string]any
	if err := json.Unmarshal([]byte(line), &values); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	for name, value := range values {
		switch name {
		case "level", "logger", "msg", "site", "state", "source":
			name += fmt.Sprint(" ", value)
		}
		fields = append(fields, name)
	}
	slices.Sort(fields)
	return fields
}

// Other systems

func TestRecipeComingFrom(t *testing.T) {
	t.Parallel()
	const title = "Coming from Heroku, Kamal or Laravel"
	r, c := newRecipe(t, title)
	text, err := os.ReadFile(recipesPath)
	if err != nil {
		t.Fatal(err)
	}
	write(t, r.local("/etc/caddy/maintenance.html"), "<!DOCTYPE html>\n<p>{maintenance.message}\n")
	caddyfile := r.only(c, "caddyfile")
	r.load(caddyfile)

	_, tables, _ := strings.Cut(string(text), "\n## "+title+"\n")
	rows := regexp.MustCompile("(?m)^\\| `.*` \\| (.*) \\|$").FindAllStringSubmatch(tables, -1)
	if len(rows) != 17 {
		t.Errorf("got %d rows", len(rows))
	}
	for _, row := range rows {
		code := regexp.MustCompile("^`([^`]+)`").FindStringSubmatch(row[1])
		switch {
		case code == nil && strings.HasPrefix(row[1], "none: "):
		case code == nil:
			t.Errorf("neither a command nor none: %s", row[1])
		case strings.HasPrefix(code[1], "caddy maintenance on "):
			r.must("caddy maintenance off shop")
			r.must(code[1])
			if got := r.caddy.status("shop"); got.State != "on" {
				t.Errorf("after %s the shop is %s", code[1], got.State)
			}
		case strings.HasPrefix(code[1], "caddy maintenance off "):
			r.must(code[1])
			if got := r.caddy.status("shop"); got.State != "off" {
				t.Errorf("after %s the shop is %s", code[1], got.State)
			}
		case strings.HasPrefix(code[1], "caddy "):
			if got := r.must(code[1]); got != "on\n" {
				t.Errorf("%s: got %s", code[1], got)
			}
		default: // a line of the Caddyfile
			r.load(block{text: "shop.example.com {\n\tmaintenance shop {\n\t\t" + code[1] + "\n\t}\n}\n"})
			r.load(caddyfile)
		}
	}
}

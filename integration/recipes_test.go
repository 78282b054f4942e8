package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What TestDocs cannot do of the documentation, as it needs more than caddy and curl.

// newRecipe returns a reader, and a chapter to do.
func newRecipe(t *testing.T, page, title string) (*docReader, chapter) {
	t.Helper()
	return newReader(t), readChapter(t, page, title)
}

// readChapter returns a chapter of a page in docs/.
func readChapter(t *testing.T, page, title string) chapter {
	t.Helper()
	chapters := readChapters(t, "../docs/"+page)
	i := slices.IndexFunc(chapters, func(c chapter) bool { return c.title == title })
	if i < 0 {
		t.Fatalf("%s has no chapter %q", page, title)
	}
	return chapters[i]
}

// only returns the one block in this language, whose examples are the reader's from now on.
func (r *docReader) only(c chapter, language string) string {
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
	r.do(block{place: found[0].place, runs: found[0].runs})
	return found[0].text
}

// expect types a command line, and fails the test if it prints something else.
func (r *docReader) expect(line, want string) {
	r.t.Helper()
	if got := r.must(line); got != want {
		r.t.Errorf("%s: got %q, want %q", line, got, want)
	}
}

// All links of the documentation lead somewhere, and no page is longer than people read.
func TestDocLinks(t *testing.T) {
	for _, page := range docs(t) {
		limit := 2500
		if page == "../README.md" {
			limit = 1500
		}
		if n := len(strings.Fields(readFile(t, page))); n > limit {
			t.Errorf("%s has %d words, at most %d are read", page, n, limit)
		}
	}
	for _, from := range append(docs(t), "../CONTRIBUTING.md", "../CHANGELOG.md") {
		for _, link := range find(`\]\(\s*([^)]*)\)`, readFile(t, from)) {
			file, anchor, hasAnchor := strings.Cut(link, "#")
			path := from
			if file != "" {
				path = filepath.Join(filepath.Dir(from), file)
			}
			if strings.Contains(file, "://") {
				continue
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", from, err)
			} else if hasAnchor && !slices.Contains(anchors(t, path), "#"+anchor) {
				t.Errorf("%s: %s has no #%s", from, path, anchor)
			}
		}
	}
}

// anchors returns where links to the headings of a file lead.
func anchors(t *testing.T, path string) (found []string) {
	t.Helper()
	content := readFile(t, path)
	for _, id := range find(`<a id="(\w+)">`, content) {
		found = append(found, "#"+id)
	}
	for _, title := range find(`(?m)^#+ (.*)$`, content) {
		title = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(title), "")
		found = append(found, "#"+strings.ReplaceAll(title, " ", "-"))
	}
	return found
}

// A header field that the app sets too does not come twice.
func TestRecipeCORSLeavesTheHeadersOfTheApp(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "recipes.md", "A browser app on another origin (CORS)")
	r.app = newApp(t, func(w http.ResponseWriter, request *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "https://app.example.com")
		welcome(w, request)
	})
	r.load(r.only(c, "caddyfile"))
	got := r.must("curl -i https://api.example.com/")
	if allowed := find(`(?m)^access-control-allow-origin: (.*)$`, got); !slices.Equal(allowed, []string{"https://app.example.com"}) {
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

// startService starts one in place of the reader's app.
func (r *docReader) startService() *service {
	s := &service{t: r.t, address: freeAddress(r.t), reached: make(chan struct{})}
	s.start()
	r.examples = append(r.examples, "localhost:9000", s.address)
	return s
}

func (s *service) start() {
	s.t.Helper()
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
	listener, server := listen(s.t, s.address), s.server
	go func() { _ = server.Serve(listener) }()
	s.t.Cleanup(s.stop)
}

func (s *service) stop() { _ = s.server.Close() }

func TestRecipeSystemd(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "operations.md", "systemd: hold while a service restarts")
	shop := r.startService()
	r.load(r.only(c, "caddyfile"))
	unit := r.only(c, "ini")
	lines := make(map[string][]string) // of each setting
	for setting, n := range map[string]int{"ExecStop": 1, "ExecStopPost": 1, "ExecStartPost": 2} {
		if lines[setting] = find(`(?m)^`+setting+`=(.+)$`, unit); len(lines[setting]) != n {
			t.Fatalf("got %q", lines[setting])
		}
	}
	// What systemd does: it goes on where a failure is marked as no matter.
	do := func(setting string) {
		t.Helper()
		for _, line := range lines[setting] {
			command, ignored := strings.CutPrefix(line, "-")
			if printed, code := r.runOne(strings.TrimPrefix(r.local(command), "/usr/bin/")); code != 0 && !ignored {
				t.Errorf("%s failed: %s", line, printed)
				return
			}
		}
	}
	stop := func() {
		t.Helper()
		do("ExecStop")
		shop.stop()
		do("ExecStopPost")
	}
	// A visitor who comes while the app is down waits for the one that is started.
	expectPause := func() {
		t.Helper()
		if left := time.Until(r.caddy.status("shop-restart").Until); left < 9*time.Minute || left > 10*time.Minute {
			t.Errorf("it ends by itself in %s", left)
		}
		r.run("curl https://shop.example.com/ &")
		shop.start()
		do("ExecStartPost")
		if got := <-r.background[0]; got != "Welcome to the shop.\n" || shop.warming.Load() >= 0 {
			t.Errorf("who was held got %q, of an app that still fails %d checks", got, shop.warming.Load())
		}
		r.background = nil
	}

	stop()
	expectPause()

	// A crash, after which systemd runs no ExecStop=.
	shop.stop()
	r.expect("curl -o /dev/null -w '%{http_code}' https://shop.example.com/", "502")
	do("ExecStopPost")
	expectPause()

	// What somebody has closed by hand is left closed.
	r.must("caddy maintenance on shop")
	stop()
	shop.start()
	do("ExecStartPost")
	r.expect("caddy maintenance shop", "on\n")

	// Without Caddy the app is restarted all the same.
	r.caddy.kill()
	stop()
	shop.start()
	do("ExecStartPost")
}

// cron

func TestRecipeCron(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "operations.md", "cron: a maintenance window")
	r.load(r.only(c, "caddyfile"))
	table := r.only(c, "crontab")
	commands := find(`(?m)^(?:[-*/,0-9]+ +){5}(.*)$`, table)
	if len(commands) != 2 {
		t.Fatalf("got %q", commands)
	}
	bin := filepath.Join(r.caddy.dir, "bin")
	backup := func(exitStatus int) {
		t.Helper()
		r.install("backup-shop", fmt.Sprintf("caddy maintenance shop >state-at-backup\nexit %d\n", exitStatus))
	}
	backup(0)
	cron := func(command, wantMail string, wantCode int) {
		t.Helper()
		mail, code := r.shell(strings.ReplaceAll(command, "%", "\n"),
			append(find(`(?m)^(\w+=.*)$`, strings.ReplaceAll(table, "/usr/local/bin", bin)), "HOME="+r.caddy.dir, "LOGNAME=root", "SHELL=/bin/sh")...)
		if code != wantCode || !strings.HasPrefix(mail, wantMail) || (wantMail == "") != (mail == "") {
			t.Errorf("%s: got %d %s, want %d %s", command, code, mail, wantCode, wantMail)
		}
	}

	migration := r.caddy.on("shop", `{"message": "Moving house."}`) // which is left alone
	cron(commands[1], "Error: site shop is already in maintenance", 1)
	cron(commands[0], "", 0)
	got := r.caddy.status("shop-window")
	if left := time.Until(got.Until); got.State != "on" || got.Message != "Back at three." || left < 59*time.Minute || left > time.Hour {
		t.Errorf("got %+v", got)
	}
	if got := r.caddy.status("shop"); !got.sameSwitch(migration) {
		t.Errorf("a migration was %+v and is %+v", migration, got)
	}
	r.caddy.off("shop")
	cron(commands[1], "", 0)
	if state := readFile(t, filepath.Join(r.caddy.dir, "state-at-backup")); state != "on\n" {
		t.Errorf("at the backup the shop was %q", state)
	}
	r.expect("caddy maintenance shop", "off\n")

	backup(3)
	cron(commands[1], "backup-shop ended with exit status 3; shop stays in maintenance; to open it: caddy maintenance off shop\n", 3)
	if got := r.caddy.status("shop"); got.State != "on" || !got.Until.IsZero() {
		t.Errorf("after a backup that failed got %+v", got)
	}
	r.caddy.kill()
	for _, command := range commands {
		cron(command, "Error: Caddy cannot be reached", 1)
	}
}

// install puts a script beside the Caddy that scripts call.
func (r *docReader) install(name, script string) {
	r.t.Helper()
	path := filepath.Join(r.caddy.dir, "bin", name)
	write(r.t, path, "#!/bin/sh\n"+script)
	if err := os.Chmod(path, 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(binary, filepath.Join(r.caddy.dir, "bin", "caddy")); err != nil && !os.IsExist(err) {
		r.t.Fatal(err)
	}
}

// shell has sh run a script.
func (r *docReader) shell(script string, environment ...string) (printed string, code int) {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = r.caddy.dir
	cmd.Env = append(environment, "CADDY_ADMIN="+r.caddy.admin, "GORACE=atexit_sleep_ms=0")
	output, _ := cmd.CombinedOutput()
	checkRaces(r.t, string(output))
	return string(output), cmd.ProcessState.ExitCode()
}

// Tenants

// The loop closes one tenant at a time, and leaves the one closed that it fails for.
func TestTenantsAreMigratedOneByOne(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	c := readChapter(t, "tenants.md", "Subdomains, with a wildcard")
	r.load(r.only(c, "caddyfile"))
	for _, test := range []struct{ migrate, printed, closed string }{
		{"caddy maintenance --json", "acme globex", ""},
		{"caddy maintenance --json; [ $1 != acme.example.com ]", "acme", "acme"},
	} {
		r.install("migrate", test.migrate)
		printed, _ := r.shell(r.only(c, "sh"), "PATH="+filepath.Join(r.caddy.dir, "bin"))
		if got := strings.Join(find(`"site":"(\w+)\.`, printed), " "); got != test.printed {
			t.Errorf("%s: migrated while closed are %q, want %q: %s", test.migrate, got, test.printed, printed)
		}
		_, list, _ := r.caddy.request(http.MethodGet, "/maintenance", "")
		if got := strings.Join(find(`"site":"(\w+)\.`, list), " "); got != test.closed {
			t.Errorf("%s: closed is %q, want %q", test.migrate, got, test.closed)
		}
	}
}

// Containers

func TestRecipeContainer(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "operations.md", "A container")
	r.caddy.storage = "" // it is in the data directory, as /data is in the container
	caddyfile := r.only(c, "caddyfile")
	steps := regexp.MustCompile(`(?m)^\$ docker compose up -d(?: --force-recreate)?\n`).Split(r.only(c, "shell-session"), -1)
	if len(steps) != 3 || steps[0] != "" {
		t.Fatalf("got %q", steps)
	}
	for _, commands := range steps[1:] {
		r.load(caddyfile)
		r.console(block{place: "A container", text: strings.ReplaceAll(commands, "$ docker compose exec caddy ", "$ ")})
	}
	r.expect("curl -o /dev/null -w '%{http_code}' https://shop.example.com/", "503")

	// Without the volume.
	r.caddy.kill()
	if err := os.RemoveAll(filepath.Join(r.caddy.dir, "data")); err != nil {
		t.Fatal(err)
	}
	r.load(caddyfile)
	r.expect("caddy maintenance shop", "off\n")
}

// caddyfileOf makes a Caddyfile of the labels below a path as caddy-docker-proxy does:
// "Keys are the directive name, and values are whitespace separated arguments"; "Dots
// represent nesting, and grouping is done automatically"; "Directives from labels are
// ordered alphabetically by default"; "Suffix _<number> isolates directives".
func caddyfileOf(labels map[string]string, path, indent string) string {
	directives := make(map[string]string) // by what comes after the path
	for label := range labels {
		if rest, ok := strings.CutPrefix(label, path+"."); ok {
			name, _, _ := strings.Cut(rest, ".")
			words := strings.TrimSpace(regexp.MustCompile(`_\d+$`).ReplaceAllString(name, "") + " " + labels[path+"."+name])
			directives[name] = indent + words
			if block := caddyfileOf(labels, path+"."+name, indent+"\t"); block != "" {
				directives[name] += " {\n" + block + indent + "}"
			}
			directives[name] += "\n"
		}
	}
	text := ""
	for _, directive := range slices.Sorted(maps.Values(directives)) {
		text += directive
	}
	return text
}

// TestDocs runs the Caddyfile.
func TestRecipeDockerProxyLabels(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "operations.md", "Labels of caddy-docker-proxy")
	labels := make(map[string]string)
	for _, line := range find(`(?m)^ {6}(caddy.*)$`, r.only(c, "yaml")) {
		name, value, _ := strings.Cut(line, ": ")
		labels[name] = strings.ReplaceAll(strings.Trim(value, `"`), "{{upstreams 9000}}", "172.18.0.3:9000")
	}
	got := labels["caddy"] + " {\n" + caddyfileOf(labels, "caddy", "\t") + "}\n"
	if want := r.only(c, "caddyfile"); got != want {
		t.Errorf("the labels become\n%s\nand the text has\n%s", got, want)
	}
}

// Alerts

// What the rules do is tested by promtool.
func TestRecipeAlerts(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "monitoring.md", "Alerts")
	rules, tests := readFile(t, "../docs/alerts/alerts.yml"), readFile(t, "../docs/alerts/alerts_test.yml")
	for _, alert := range find(`- alert: (\w+)\n`, rules) {
		for _, fires := range []string{`\[\]`, `\n +- exp_labels: `} {
			if !regexp.MustCompile(`alertname: ` + alert + `\n +exp_alerts: *` + fires).MatchString(tests) {
				t.Errorf("alerts_test.yml has no test of %s where exp_alerts is %s", alert, fires)
			}
		}
	}
	var queries string
	for _, b := range c.blocks {
		if b.language == "promql" {
			queries += b.text + "\n"
		}
	}
	flat := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	for query := range strings.SplitSeq(regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(queries, ""), "\n\n") {
		if query = flat(query); query != "" && !strings.Contains(flat(tests), " "+query+" eval_time: ") {
			t.Errorf("alerts_test.yml has no test of %s", query)
		}
	}

	r.load("{\n\tmetrics {\n\t\tper_host\n\t}\n}\n" + r.only(c, "caddyfile"))
	r.must("caddy maintenance on shop")
	r.must("curl -o /dev/null https://shop.example.com/")
	eventually(t, patience, "all metrics of the rules and queries are there", func() bool {
		_, metrics, _ := r.caddy.request(http.MethodGet, "/metrics", "")
		for _, name := range find(`(caddy_maintenance_\w+)`, rules+queries) {
			if !regexp.MustCompile(`\n` + name + `(?:{[^}]*(?:site="shop"|state="silent")})? `).MatchString(metrics) {
				return false
			}
		}
		return regexp.MustCompile(`\ncaddy_http_request_duration_seconds_count{code="503",[^}]*host="shop\.example\.com[:"]`).MatchString(metrics)
	})
}

// The README

// The session in a clone, on the repository's Caddyfile.
func TestReadmeDemo(t *testing.T) {
	t.Parallel()
	r := newReader(t)
	r.examples = []string{"go run ./cmd/caddy", "caddy", "auto_https off\n", "auto_https off\n\tadmin " + r.caddy.admin + "\n"}
	for _, port := range []string{":8080", ":8081", ":9080", ":9081"} {
		r.examples = append(r.examples, port, ":"+freePort(t))
	}
	r.caddy.start(r.local(readFile(t, "../Caddyfile")))
	session := r.only(readChapter(t, "../README.md", "Try it"), "console")
	r.console(block{place: "Try it", text: session + "$ curl localhost:8081\nWelcome to the wiki.\n"})
}

// Only the files are open.
func TestRecipeImagesAndStyles(t *testing.T) {
	t.Parallel()
	r, c := newRecipe(t, "recipes.md", "Images and styles of a page")
	r.do(c.blocks[:3]...)
	r.must("caddy maintenance on shop")
	for path, want := range map[string]string{
		"": "503", "cart": "503", "maintenance-assets": "503", "maintenance-assets.css": "503", "maintenance-assets/../cart": "503",
		"maintenance-assets/%2e%2e/cart": "503", "maintenance-assets/style.css": "200", "maintenance-assets/missing.css": "404",
	} {
		if got := r.must("curl -o /dev/null -w '%{http_code}' https://shop.example.com/" + path); got != want {
			t.Errorf("/%s gets %s, want %s", path, got, want)
		}
	}
}

// A deploy by the guide's script.
func TestGuideHold(t *testing.T) {
	t.Parallel()
	script := find("(?s)```sh\n(.*?)\n```", readSection(t, "guide.md", "Hold requests"))[0]
	r, c := newRecipe(t, "guide.md", "Hold requests")
	shop := r.startService()
	r.examples = append(r.examples, "--terminate-after 10s", "--terminate-after 1s")
	r.load(r.only(c, "caddyfile"))
	shop.warming.Store(0)
	r.install("restart-the-app", "echo down >restarts; while [ -e restarts ]; do sleep 0.01; done")
	restarts := filepath.Join(r.caddy.dir, "restarts")
	deploy := func() (string, int) {
		return r.shell(r.local(script), "PATH="+filepath.Join(r.caddy.dir, "bin")+":"+os.Getenv("PATH"), "HOME="+r.caddy.dir)
	}

	// Somebody's migration goes on.
	r.must("caddy maintenance on shop")
	if got, code := deploy(); code != 1 || !strings.Contains(got, "nothing has changed") {
		t.Errorf("during a migration got %d %s", code, got)
	}
	r.must("caddy maintenance off shop")

	// A request that does not end does not stop the deploy, and who comes meanwhile waits.
	endless, deployed := make(chan string, 1), make(chan string, 1)
	go func() {
		got, _ := r.runOne("curl https://shop.example.com/endless")
		endless <- got
	}()
	<-shop.reached
	go func() {
		got, code := deploy()
		deployed <- fmt.Sprint(code, " ", got)
	}()
	r.caddy.awaitFile("restarts", "down")
	shop.stop()
	r.run("curl https://shop.example.com/ -H 'Accept: text/plain' &")
	shop.start()
	remove(t, restarts)
	if got := <-deployed; !strings.HasPrefix(got, "0 ") {
		t.Errorf("the deploy failed: %s", got)
	}
	if got := <-r.background[0]; got != "Welcome to the shop.\n" {
		t.Errorf("who was held got %q", got)
	}
	if got := <-endless; !strings.HasPrefix(got, "<!DOCTYPE html>") {
		t.Errorf("what did not end got %q", got)
	}
}

// The log

// What docs/troubleshooting.md says to look for in the log is there: in that of the
// instance that is told of a switch, or in that of the one that follows. Its lines have
// the fields that are shown, and no others.
func TestTroubleshootingLog(t *testing.T) {
	t.Parallel()
	const page, title = "troubleshooting.md", "What to look for in the log"
	r, c := newReader(t), readChapter(t, page, title)
	start := func() { r.do(c.blocks[0]) }
	await := func(machine, what string) { t.Helper(); r.at(machine).caddy.awaitFile("caddy.log", what) }
	start()
	follower := r.at("web-2")
	r.must("caddy maintenance on shop --secret 0123456789-ABCDEF")
	r.must("curl -o /dev/null https://shop.example.com/")
	r.must("curl -L -b jar https://shop.example.com/.maintenance/0123456789-ABCDEF")
	follower.caddy.awaitState("shop", "on")
	start()
	r.caddy.awaitState("shop", "on")
	r.must("caddy maintenance on shop --for 5s") // longer than the other one takes to confirm
	await("web-1", `"source":"until"`)
	r.caddy.kill() // or it would write the record again
	follower.caddy.kill()
	write(t, filepath.Join(r.mnt, "caddy", "maintenance", "sites", "shop.json"), "{")
	for _, c := range []*caddy{r.caddy, follower.caddy} { // or their disks would know better
		remove(t, filepath.Join(c.dir, "data", "caddy", "maintenance"))
	}
	start()
	await("web-1", "cannot be read")

	logs := map[string]string{"web-1": readFile(t, r.caddy.logPath()), "web-2": readFile(t, follower.caddy.logPath())}
	for _, row := range readTable(t, readSection(t, page, title), "search for", 1) {
		for _, pattern := range codesIn(row[0]) {
			grep := exec.Command("grep", pattern)
			grep.Stdin = strings.NewReader(logs["web-1"] + logs["web-2"])
			if output, err := grep.Output(); err != nil {
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
			machine := "web-1"
			if strings.Contains(line, `"source":"sync"`) {
				machine = "web-2"
			}
			if !slices.ContainsFunc(strings.Split(strings.TrimSpace(logs[machine]), "\n"), func(logged string) bool {
				return slices.Equal(fieldsOf(t, logged), fieldsOf(t, line))
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
	const page = "coming-from.md"
	rows := 0
	for _, title := range []string{"Heroku", "Kamal", "Laravel", "fops-caddy-maintenance"} {
		r, c := newRecipe(t, page, title)
		r.do(c.blocks...)
		caddyfile := r.only(c, "caddyfile")
		for _, row := range find("(?m)^\\| `.*` \\| (.*) \\|$", readSection(t, page, title)) {
			rows++
			code := strings.Join(find("^`([^`]+)`", row), "")
			switch {
			case code == "" && strings.HasPrefix(row, "none: "):
			case code == "":
				t.Errorf("neither a command nor none: %s", row)
			case strings.HasPrefix(code, "caddy maintenance on "):
				r.must("caddy maintenance off shop")
				r.must(code)
				r.expect("caddy maintenance shop", "on\n")
			case strings.HasPrefix(code, "caddy maintenance off "):
				r.must(code)
				r.expect("caddy maintenance shop", "off\n")
			case strings.HasPrefix(code, "caddy "):
				r.expect(code, "on\n")
			default: // a line of the Caddyfile
				if !strings.Contains(caddyfile, "\t"+code+"\n") {
					t.Errorf("the Caddyfile of %s does not have %s", title, code)
				}
			}
		}
	}
	if rows != 33 {
		t.Errorf("got %d rows", rows)
	}
}

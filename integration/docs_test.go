package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDocs does what the documentation says, chapter by chapter: it loads each block
// of Caddyfile, types what stands behind $ in each block of console, and compares what
// that prints. A block of Go is the app from then on. A comment <!-- run: … --> before a block,
// which readers do not see, says
//
//	run: save <path>     that the block is a file, a program if the path has no directory
//	run: from <address>  where the requests of the block come from
//	run: on <machine>…   on which machines it is done, of several that share what is below /mnt
//	run: kill <machine>  that the Caddy of this machine is killed before
//	run: terminal        that what is typed is typed on a terminal
//	run: until <a> = <b> that it is done when the command a prints b
//	run: with <a> = <b>  what takes the place of an example for the rest of the chapter, b
//	                     being an address, or "a free port"
func TestDocs(t *testing.T) {
	t.Parallel()
	for _, file := range docs(t) {
		for _, chapter := range readChapters(t, file) {
			if chapter.title == "Try it" {
				continue // which TestReadmeDemo does, with another Caddyfile
			}
			t.Run(filepath.Base(file)+"/"+chapter.title, func(t *testing.T) {
				t.Parallel()
				newReader(t).do(chapter.blocks...)
			})
		}
	}
}

// docs returns the pages of the documentation.
func docs(t *testing.T) []string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("found %q %v", pages, err)
	}
	return append(pages, "../README.md")
}

type chapter struct {
	title  string
	blocks []block
}

// block is a block of code, and what the comments before it say.
type block struct {
	place    string // file and line
	language string
	text     string
	runs     []string
}

var (
	startOfChapter = regexp.MustCompile(`(?m)^## (.*)$`)
	blockOfCode    = regexp.MustCompile("(?m)((?:^<!-- run: .* -->\n)*)(?:^<!--\n)?^ *```(.*)\n((?:.*\n)*?) *```$")
)

// readChapters returns the chapters of a file that have something to do in them.
func readChapters(t *testing.T, file string) (chapters []chapter) {
	t.Helper()
	content := readFile(t, file)
	starts := append([][]int{{0, 0, 0, 0}}, startOfChapter.FindAllStringSubmatchIndex(content, -1)...) // what comes before the first
	starts = append(starts, []int{len(content)})
	for i, start := range starts[:len(starts)-1] {
		c := chapter{title: content[start[2]:start[3]]}
		todo := false
		for _, found := range blockOfCode.FindAllStringSubmatchIndex(content[:starts[i+1][0]], -1) {
			if found[0] < start[0] {
				continue
			}
			line := 1 + strings.Count(content[:found[4]], "\n")
			b := block{fmt.Sprintf("%s:%d", filepath.Base(file), line), content[found[4]:found[5]], content[found[6]:found[7]], nil}
			b.runs = find(`<!-- run: (.*) -->`, content[found[2]:found[3]])
			c.blocks = append(c.blocks, b)
			todo = todo || b.language == "caddyfile" || b.language == "console"
		}
		if todo {
			chapters = append(chapters, c)
		}
	}
	return chapters
}

// docReader is somebody who does what a chapter says, at a machine of his own.
type docReader struct {
	t           *testing.T
	caddy       *caddy
	http, https string // addresses of the sites
	app         *app
	examples    []string // what takes the place of examples, old and new
	from        string   // where requests come from
	onTerminal  bool     // caddy is typed on a terminal
	cookies     http.CookieJar
	code        int               // the last exit status
	background  []<-chan string   // what commands that go on print
	secrets     map[string]string // made here, by what the text has
	name        string            // of the machine
	mnt         string            // what is below /mnt
	instances   map[string]string // names of machines, by the IDs of their instances
	others      map[string]*docReader
}

func newReader(t *testing.T) *docReader {
	upstream := newApp(t, func(w http.ResponseWriter, request *http.Request) {
		switch {
		case request.URL.Path == "/healthz":
			fmt.Fprintln(w, "ok")
		case request.URL.Path == "/slow":
			select {
			case <-time.After(time.Minute):
			case <-request.Context().Done():
			}
			fmt.Fprintln(w, "At last.")
		case request.Method == http.MethodPost:
			fmt.Fprintln(w, "Thank you.")
		default:
			fmt.Fprintln(w, "Welcome to the shop.")
		}
	})
	r := newMachine(t, "web-1")
	r.app, r.mnt, r.instances, r.others = upstream, filepath.Join(r.caddy.dir, "mnt"), make(map[string]string), map[string]*docReader{"web-1": r}
	return r
}

// newMachine is where an app and what is below /mnt are still missing.
func newMachine(t *testing.T, name string) *docReader {
	r := &docReader{t: t, caddy: newCaddy(t), http: freeAddress(t), https: freeAddress(t), secrets: make(map[string]string), name: name}
	r.cookies, _ = cookiejar.New(nil)
	return r
}

// at returns the machine of this name.
func (r *docReader) at(name string) *docReader {
	if r.others[name] == nil {
		r.others[name] = newMachine(r.t, name)
	}
	other := r.others[name]
	other.app, other.mnt, other.instances, other.examples, other.from = r.app, r.mnt, r.instances, r.examples, r.from
	return other
}

func (r *docReader) do(blocks ...block) {
	r.t.Helper()
	for _, b := range blocks {
		r.from, r.onTerminal = "", false
		file, until := "", ""
		machines := []string{r.name}
		for _, run := range b.runs {
			switch what, rest, _ := strings.Cut(run, " "); what {
			case "save":
				file = rest
			case "from":
				r.from = rest
			case "on":
				machines = strings.Fields(rest)
			case "terminal":
				r.onTerminal = true
			case "kill":
				r.at(rest).caddy.kill()
			case "until":
				until = rest
			case "with":
				old, replacement, _ := strings.Cut(rest, " = ")
				if replacement == "a free port" {
					replacement = ":" + freePort(r.t)
				}
				r.examples = append(r.examples, old, replacement)
			default:
				r.t.Fatalf("%s: run: %s", b.place, run)
			}
		}
		for _, machine := range machines {
			r.at(machine).doBlock(b, file, until)
		}
	}
}

func (r *docReader) doBlock(b block, file, until string) {
	r.t.Helper()
	if command, want, ok := strings.Cut(until, " = "); ok {
		eventually(r.t, patience, b.place+": "+until, func() bool {
			return strings.TrimSpace(r.run(r.local(command))) == want
		})
	}
	switch {
	case file != "" && !strings.Contains(file, "/"):
		write(r.t, filepath.Join(r.caddy.dir, file), b.text)
		if err := os.Chmod(filepath.Join(r.caddy.dir, file), 0o700); err != nil {
			r.t.Fatal(err)
		}
	case file != "":
		write(r.t, r.local(file), b.text)
	case b.language == "caddyfile":
		r.load(b.text)
	case b.language == "console":
		r.console(b)
	case b.language == "go":
		r.startApp(b.text)
	}
}

// local has what is only an example in the text replaced by what there is here.
func (r *docReader) local(text string) string {
	text = strings.NewReplacer(r.examples...).Replace(text)
	replacements := []string{
		"/etc/caddy/", r.caddy.dir + "/etc/", "/mnt/", r.mnt + "/",
		"localhost:9000", r.app.address(), "localhost:2019", r.caddy.admin,
	}
	for old, secret := range r.secrets {
		replacements = append(replacements, old, secret)
	}
	for id, name := range r.instances {
		replacements = append(replacements, "forget "+name, "forget "+id)
	}
	return strings.NewReplacer(replacements...).Replace(text)
}

// load runs a Caddyfile, with certificates of Caddy's own.
func (r *docReader) load(text string) {
	r.t.Helper()
	text = r.local(text)
	_, httpPort, _ := net.SplitHostPort(r.http)
	_, httpsPort, _ := net.SplitHostPort(r.https)
	options := fmt.Sprintf("{\n\tadmin %s\n\thttp_port %s\n\thttps_port %s\n\tdefault_bind 127.0.0.1\n", r.caddy.admin, httpPort, httpsPort) +
		"\tpersist_config off\n\tlocal_certs\n\tskip_install_trust\n"
	if r.caddy.storage != "" && !strings.Contains(text, "storage ") {
		options += fmt.Sprintf("\tstorage file_system %q\n", r.caddy.storage)
	}
	if rest, ok := strings.CutPrefix(text, "{\n"); ok {
		text = options + rest
	} else {
		text = options + "}\n" + text
	}
	path := filepath.Join(r.caddy.dir, "etc", "Caddyfile")
	write(r.t, path, text)
	r.stop() // after a reload the config before may still answer a last connection
	r.caddy.run(path)
	r.caddy.awaitRunning()
	r.findInstance()
}

// startApp runs an app, of which this is the source, in place of the one that there is.
func (r *docReader) startApp(source string) {
	r.t.Helper()
	r.examples = append(r.examples, "localhost:9000", freeAddress(r.t))
	path := filepath.Join(r.caddy.dir, "app.go")
	write(r.t, path, r.local(source))
	if output, err := exec.Command("go", "build", "-o", path+".exe", path).CombinedOutput(); err != nil {
		r.t.Fatalf("building the app: %s%v", output, err)
	}
	cmd := exec.Command(path + ".exe")
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// stop ends Caddy as a service manager does.
func (r *docReader) stop() {
	if r.caddy.process != nil {
		_ = r.caddy.process.Process.Signal(syscall.SIGTERM)
		_ = r.caddy.process.Wait()
		r.caddy.process = nil
	}
}

// findInstance notes the ID of the instance that has just been started. All instances of a
// test have the same host name.
func (r *docReader) findInstance() {
	_, sites, _ := r.caddy.request(http.MethodGet, "/maintenance", "")
	for _, site := range find(`"site":"([^"]*)"`, sites) {
		_, _, _ = r.caddy.request(http.MethodGet, "/maintenance/"+site, "") // which waits until it has reported
	}
	maps.DeleteFunc(r.instances, func(_, name string) bool { return name == r.name })
	_, list, _ := r.caddy.request(http.MethodGet, "/maintenance/instances", "")
	for _, id := range find(`"id":"([^"]*)"`, list) {
		if r.instances[id] == "" {
			r.instances[id] = r.name
		}
	}
}

// console types the commands of a block and compares what they print.
func (r *docReader) console(b block) {
	r.t.Helper()
	var got, want string
	for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
		want += line
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			command, _, _ = strings.Cut(command, "  # ")
			got += line + r.run(strings.TrimSpace(r.local(command)))
		}
	}
	for _, output := range r.background {
		got += <-output
	}
	r.background = nil
	r.compare(b, got, want)
}

var (
	// Times and the like are others each time.
	changing = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?[A-Z]+)?|\((in )?[0-9hms.]+\)|[0-9hms]+ ago|-[0-9a-f]{8}"`)
	near     = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Z]+`) // which has its seconds
	link     = regexp.MustCompile(`/\.maintenance/([A-Z2-7]{26})`)
	columns  = regexp.MustCompile(` {2,}`) // which are as wide as the names in them
)

func (r *docReader) compare(b block, got, want string) {
	r.t.Helper()
	if made, shown := link.FindStringSubmatch(got), link.FindStringSubmatch(want); made != nil && shown != nil {
		r.secrets[shown[1]] = made[1]
		got = strings.ReplaceAll(got, made[1], shown[1])
	}
	who, err := user.Current()
	if err != nil {
		r.t.Fatal(err)
	}
	got = strings.NewReplacer(
		append(r.namesOfInstances(), who.Username+"@", "eve@", hostname(r.t), r.name, r.caddy.dir+"/etc/", "/etc/caddy/", r.mnt+"/", "/mnt/", r.caddy.admin, "localhost:2019")...,
	).Replace(got)
	plain := func(text string) string {
		return sortInstances(columns.ReplaceAllString(changing.ReplaceAllString(near.ReplaceAllString(text, "NEAR TIME"), "TIME"), "  "))
	}
	pattern := regexp.QuoteMeta(plain(want))
	pattern = strings.ReplaceAll(pattern, "\n…\n", "\n(.*\n)*")
	pattern = "^" + strings.ReplaceAll(pattern, "…", ".*") + "$"
	if !regexp.MustCompile(pattern).MatchString(plain(got)) {
		r.t.Errorf("%s: got\n%s\nwant\n%s", b.place, got, want)
	}
}

// namesOfInstances returns what takes the place of IDs, old and new.
func (r *docReader) namesOfInstances() (replacements []string) {
	for id, name := range r.instances {
		replacements = append(replacements, `"`+id+`"`, `"`+name+id[len(id)-9:]+`"`, id, name)
	}
	return replacements
}

// sortInstances sorts the rows of a table of instances, which Caddy sorts by ID.
func sortInstances(text string) string {
	return regexp.MustCompile(`(?m)(?:^web-.*\n)+`).ReplaceAllStringFunc(text, func(rows string) string {
		lines := strings.SplitAfter(rows, "\n")
		slices.Sort(lines)
		return strings.Join(lines, "")
	})
}

// run types a command line, and returns what it prints.
func (r *docReader) run(line string) (printed string) {
	r.t.Helper()
	if rest, ok := strings.CutSuffix(line, " &"); ok {
		output := make(chan string, 1)
		before := r.come()
		go func() {
			printed, _ := r.runOne(rest)
			output <- printed
		}()
		r.background = append(r.background, output)
		eventually(r.t, patience, "the request has come", func() bool { return r.come() != before || len(output) > 0 })
		return ""
	}
	for part := range strings.SplitSeq(line, " && ") {
		var more string
		more, r.code = r.runOne(part)
		printed += more
		if r.code != 0 {
			break
		}
	}
	return printed
}

// come is which requests have come to the app, and which are held.
func (r *docReader) come() string {
	_, answer, _ := r.caddy.request(http.MethodGet, "/maintenance", "")
	return fmt.Sprint(r.app.requests.Load(), find(`"held":(\d+)`, answer))
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

var (
	shellWord   = regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`)
	shellQuoted = regexp.MustCompile(`'([^']*)'|"([^"]*)"`)
)

func (r *docReader) runOne(line string) (printed string, code int) {
	words := shellWord.FindAllString(line, -1)
	for i, word := range words {
		words[i] = shellQuoted.ReplaceAllString(word, "$1$2")
	}
	switch {
	case line == "echo $?":
		return fmt.Sprintln(r.code), 0
	case words[0] == "caddy" && r.onTerminal:
		cmd := r.caddy.prepare(words[1:]...)
		cmd.Args = []string{"script", "-qec", "exec " + shellWords(cmd.Args), "/dev/null"}
		cmd.Env = append(cmd.Env, "SHELL=/bin/sh") // a user may have one that runs nothing
		cmd.Path, cmd.Err = exec.LookPath("script")
		got := outputOf(r.t, cmd)
		return strings.ReplaceAll(got.stdout, "\r", ""), got.code
	case words[0] == "caddy":
		got := r.caddy.command(words[1:]...)
		return got.stdout + got.stderr, got.code
	case words[0] == "curl":
		return r.curl(words[1:])
	}
	r.t.Errorf("%s: only caddy, curl and echo $? can be typed in the documentation", line)
	return "", 127
}

// curl does what curl does with these arguments.
func (r *docReader) curl(args []string) (printed string, code int) {
	client := &http.Client{
		Timeout:       patience,
		CheckRedirect: visitors.CheckRedirect,
		Transport: &http.Transport{
			DisableKeepAlives:  true,
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // a certificate of this test's own
			DialContext:        r.dial,
		},
	}
	var target string
	var ignored, fail bool
	header := http.Header{"Accept": {"*/*"}, "User-Agent": {"curl/8"}}
	flags := flag.NewFlagSet("curl", flag.ContinueOnError)
	for _, name := range []string{"s", "S", "sS"} {
		flags.BoolVar(&ignored, name, false, "")
	}
	for _, name := range []string{"f", "fsS", "sf"} {
		flags.BoolVar(&fail, name, false, "")
	}
	failWithBody := flags.Bool("fail-with-body", false, "")
	include, follow := flags.Bool("i", false, ""), flags.Bool("L", false, "")
	output, format := flags.String("o", "", ""), flags.String("w", "", "")
	method, body := flags.String("X", "", ""), flags.String("d", "", "")
	_, _, retry := flags.Int("retry", 0, ""), flags.Int("retry-delay", 0, ""), flags.Bool("retry-connrefused", false, "")
	for _, name := range []string{"b", "c"} { // a file of cookies
		flags.Func(name, "", func(string) error { client.Jar = r.cookies; return nil })
	}
	flags.Func("H", "", func(field string) error {
		name, value, _ := strings.Cut(field, ":")
		header.Set(name, strings.TrimSpace(value))
		return nil
	})
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil || flags.NArg() > 0 && target != "" {
			r.t.Errorf("curl %q is not known here: %v", args, err)
		}
		if args = flags.Args(); len(args) > 0 {
			target, args = args[0], args[1:]
		}
	}
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	if *method == "" && *body != "" {
		*method = http.MethodPost
	}
	if *follow {
		client.CheckRedirect = nil
	}
	var response *http.Response
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		request, err := http.NewRequest(*method, target, strings.NewReader(*body))
		if err != nil {
			r.t.Error(err)
			return "", 3
		}
		request.Header = header
		response, err = client.Do(request)
		again := time.Now().Before(deadline)
		switch {
		case err == nil && *retry && again && response.StatusCode == http.StatusServiceUnavailable:
			_ = response.Body.Close()
			continue
		case err != nil && again && strings.HasSuffix(err.Error(), "remote error: tls: internal error"):
			continue // there is no certificate yet
		case *retry && again && errors.Is(err, syscall.ECONNREFUSED):
			continue
		case errors.Is(err, io.EOF):
			return "curl: (52) Empty reply from server\n", 52
		case err != nil:
			return "curl: " + err.Error() + "\n", 7
		}
		break
	}
	got := answerOf(response, nil)
	switch {
	case got.err != nil:
		return "curl: (18) transfer closed with outstanding read data remaining\n", 18
	case fail && got.code >= 400:
		return fmt.Sprintf("curl: (22) The requested URL returned error: %d\n", got.code), 22
	}
	if *include {
		printed = headerOf(response)
	}
	if *output == "" {
		printed += got.body
	}
	if *format == "" && printed != "" && !strings.HasSuffix(printed, "\n") {
		printed += "\n" // where a shell shows its prompt
	}
	printed += strings.NewReplacer("%{http_code}", fmt.Sprint(got.code), `\n`, "\n").Replace(*format)
	if *failWithBody && got.code >= 400 {
		return printed + fmt.Sprintf("curl: (22) The requested URL returned error: %d\n", got.code), 22
	}
	return printed, 0
}

// headerOf returns a response's header as curl prints it, but in the order of names.
func headerOf(response *http.Response) string {
	var fields strings.Builder
	_ = response.Header.Write(&fields)
	text := strings.ReplaceAll(fields.String(), "\r", "")
	if response.ProtoMajor == 1 {
		return fmt.Sprintf("%s %s\n%s\n", response.Proto, response.Status, text)
	}
	text = regexp.MustCompile(`(?m)^[^:]*:`).ReplaceAllStringFunc(text, strings.ToLower)
	return fmt.Sprintf("HTTP/%d %d\n%s\n", response.ProtoMajor, response.StatusCode, text)
}

// dial connects to the Caddy of this reader, whatever the name.
func (r *docReader) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := new(net.Dialer)
	if r.from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(r.from)}
	}
	_, port, _ := net.SplitHostPort(address)
	switch port {
	case "443":
		address = r.https
	case "80":
		address = r.http
	default:
		address = net.JoinHostPort("127.0.0.1", port)
	}
	return dialer.DialContext(ctx, network, address)
}

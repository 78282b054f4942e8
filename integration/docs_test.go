package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDocs does what the documentation says, chapter by chapter: it loads each block
// of Caddyfile, types what stands behind $ in each block of console, and compares what
// that prints. A comment <!-- run: … --> before a block, which readers do not see, says
//
//	run: save <path>     that the block is a file
//	run: from <address>  where the requests of the block come from
//	run: on <machine>…   on which machines it is done, of several that share what is below /mnt
//	run: until <a> = <b> that it is done when the command a prints b
//	run: with <a> = <b>  what takes the place of an example for the rest of the chapter, b
//	                     being an address, or "a free port"
func TestDocs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %q %v", files, err)
	}
	for _, file := range files {
		for _, chapter := range readChapters(t, file) {
			t.Run(filepath.Base(file)+"/"+chapter.title, func(t *testing.T) {
				t.Parallel()
				newReader(t).do(chapter)
			})
		}
	}
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

var runComment = regexp.MustCompile(`^<!-- run: (.*) -->$`)

// readChapters returns the chapters of a file that have something to do in them.
func readChapters(t *testing.T, file string) []chapter {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var chapters []chapter
	var current chapter
	var open *block
	var runs []string
	end := func() {
		for _, b := range current.blocks {
			if b.language == "caddyfile" || b.language == "console" {
				chapters = append(chapters, current)
				return
			}
		}
	}
	for i, line := range strings.Split(string(content), "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case open != nil && isFence:
			current.blocks = append(current.blocks, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		case isFence:
			open = &block{place: fmt.Sprintf("%s:%d", filepath.Base(file), i+1), language: fence, runs: runs}
			runs = nil
		case runComment.MatchString(line):
			runs = append(runs, runComment.FindStringSubmatch(line)[1])
		case strings.HasPrefix(line, "## "):
			end()
			current = chapter{title: line[3:]}
		}
	}
	end()
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
	cookies     http.CookieJar
	code        int               // the last exit status
	background  []<-chan string   // what commands that go on print
	secrets     map[string]string // made here, by what the text has
	name        string            // of the machine
	mnt         string            // what is below /mnt
	others      map[string]*docReader
}

func newReader(t *testing.T) *docReader {
	r := newMachine(t, "web-1")
	r.mnt = filepath.Join(r.caddy.dir, "mnt")
	r.app = newApp(t, func(w http.ResponseWriter, request *http.Request) {
		switch {
		case request.URL.Path == "/healthz":
			fmt.Fprintln(w, "ok")
		case request.URL.Path == "/slow":
			select {
			case <-time.After(2 * time.Second):
			case <-request.Context().Done():
			}
			fmt.Fprintln(w, "At last.")
		case request.Method == http.MethodPost:
			fmt.Fprintln(w, "Thank you.")
		default:
			fmt.Fprintln(w, "Welcome to the shop.")
		}
	})
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
	if name == r.name {
		return r
	}
	if r.others == nil {
		r.others = make(map[string]*docReader)
	}
	other := r.others[name]
	if other == nil {
		other = newMachine(r.t, name)
		r.others[name] = other
	}
	other.app, other.mnt, other.examples, other.from = r.app, r.mnt, r.examples, r.from
	return other
}

func (r *docReader) do(c chapter) {
	for _, b := range c.blocks {
		r.from = ""
		file, until := "", ""
		machines := []string{r.name}
		for _, run := range b.runs {
			what, rest, _ := strings.Cut(run, " ")
			switch what {
			case "save":
				file = rest
			case "from":
				r.from = rest
			case "on":
				machines = strings.Fields(rest)
			case "until":
				until = rest
			case "with":
				old, replacement, ok := strings.Cut(rest, " = ")
				if !ok {
					r.t.Fatalf("%s: run: %s", b.place, run)
				}
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
	if command, want, ok := strings.Cut(until, " = "); ok {
		eventually(r.t, patience, b.place+": "+until, func() bool {
			return strings.TrimSpace(r.run(r.local(command))) == want
		})
	}
	switch {
	case file != "":
		write(r.t, r.local(file), b.text)
	case b.language == "caddyfile":
		r.load(b)
	case b.language == "console":
		r.console(b)
	}
}

// local has what is only an example in the text replaced by what there is here.
func (r *docReader) local(text string) string {
	text = strings.NewReplacer(r.examples...).Replace(text)
	replacements := []string{
		"/etc/caddy/", r.caddy.dir + "/etc/",
		"/mnt/", r.mnt + "/",
		"localhost:9000", r.app.address(),
		"localhost:2019", r.caddy.admin,
	}
	for old, secret := range r.secrets {
		replacements = append(replacements, old, secret)
	}
	return strings.NewReplacer(replacements...).Replace(text)
}

// load runs a Caddyfile, with certificates of Caddy's own.
func (r *docReader) load(b block) {
	text := r.local(b.text)
	_, httpPort, _ := net.SplitHostPort(r.http)
	_, httpsPort, _ := net.SplitHostPort(r.https)
	options := fmt.Sprintf("{\n\tadmin %s\n\thttp_port %s\n\thttps_port %s\n\tdefault_bind 127.0.0.1\n\tpersist_config off\n\tlocal_certs\n\tskip_install_trust\n",
		r.caddy.admin, httpPort, httpsPort)
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
	r.caddy.kill() // after a reload the config before may still answer a last connection
	r.caddy.run(path)
	r.caddy.awaitRunning()
}

// console types the commands of a block and compares what they print.
func (r *docReader) console(b block) {
	r.t.Helper()
	var got, want string
	lines := strings.SplitAfter(strings.ReplaceAll(b.text, "\\\n", " "), "\n")
	for i, line := range lines {
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			want += line
			if i < len(lines)-1 {
				continue
			}
		}
		if ok {
			want += line
			got += line + r.run(strings.TrimSpace(r.local(command)))
		}
	}
	for _, output := range r.background {
		got += <-output
	}
	r.background = nil
	r.compare(b, got, want)
}

// times and the like are others each time.
var changing = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?[A-Z]+)?|\(in [0-9hms.]+\)`)

var link = regexp.MustCompile(`/\.maintenance/([A-Z2-7]{26})`)

func (r *docReader) compare(b block, got, want string) {
	r.t.Helper()
	if hostname, err := os.Hostname(); err == nil {
		got = strings.ReplaceAll(got, hostname, r.name)
	}
	made, shown := link.FindStringSubmatch(got), link.FindStringSubmatch(want)
	if made != nil && shown != nil {
		r.secrets[shown[1]] = made[1]
		got = strings.ReplaceAll(got, made[1], shown[1])
	}
	got = strings.NewReplacer(r.caddy.dir+"/etc/", "/etc/caddy/", r.mnt+"/", "/mnt/", r.caddy.admin, "localhost:2019").Replace(got)
	pattern := regexp.QuoteMeta(changing.ReplaceAllString(want, "TIME"))
	pattern = strings.ReplaceAll(pattern, "\n…\n", "\n(.*\n)*")
	pattern = "^" + strings.ReplaceAll(pattern, "…", ".*") + "$"
	if matched, err := regexp.MatchString(pattern, changing.ReplaceAllString(got, "TIME")); err != nil || !matched {
		r.t.Errorf("%s: got\n%s\nwant\n%s%v", b.place, got, want, err)
	}
}

// run types a command line, and returns what it prints.
func (r *docReader) run(line string) (printed string) {
	r.t.Helper()
	if rest, ok := strings.CutSuffix(line, " &"); ok {
		output := make(chan string, 1)
		before := r.app.requests.Load()
		held := r.counted()
		go func() {
			printed, _ := r.runOne(rest)
			output <- printed
		}()
		r.background = append(r.background, output)
		eventually(r.t, patience, "the request has come", func() bool {
			return r.app.requests.Load() > before || r.counted() > held || len(output) > 0
		})
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

// counted is how many requests are held, of all sites.
func (r *docReader) counted() int {
	_, answer, _ := r.caddy.request(http.MethodGet, "/maintenance", "")
	n := 0
	for _, match := range regexp.MustCompile(`"held":(\d+)`).FindAllStringSubmatch(answer, -1) {
		var held int
		_, _ = fmt.Sscan(match[1], &held)
		n += held
	}
	return n
}

func (r *docReader) runOne(line string) (printed string, code int) {
	words := shellWords(line)
	switch {
	case line == "echo $?":
		return fmt.Sprintln(r.code), 0
	case words[0] == "caddy":
		got := r.caddy.command(words[1:]...)
		return got.stdout + got.stderr, got.code
	case words[0] == "curl":
		return r.curl(words[1:])
	}
	r.t.Errorf("%s: only caddy, curl and echo $? can be typed in the documentation", line)
	return "", 127
}

var shellWord = regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`)

func shellWords(line string) []string {
	words := shellWord.FindAllString(line, -1)
	for i, word := range words {
		words[i] = strings.NewReplacer("'", "", `"`, "").Replace(word)
		if strings.Contains(word, "'") {
			words[i] = strings.ReplaceAll(word, "'", "")
		}
	}
	return words
}

// curl does what curl does with these arguments.
func (r *docReader) curl(args []string) (printed string, code int) {
	var include, fail, discard, retry bool
	var target, format string
	method, body := "", ""
	header := make(http.Header)
	client := &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives:  true,
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, // a certificate of this test's own
			DialContext:        r.dial,
		},
	}
	next := func(i *int) string {
		*i++
		return args[*i]
	}
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; arg {
		case "-s", "-S", "-sS":
		case "-i":
			include = true
		case "-f", "-fsS", "-sf":
			fail = true
		case "-o":
			discard = next(&i) == "/dev/null"
		case "-w":
			format = next(&i)
		case "-X":
			method = next(&i)
		case "-d":
			body = next(&i)
		case "-H":
			name, value, _ := strings.Cut(next(&i), ":")
			header.Add(name, strings.TrimSpace(value))
		case "-b", "-c": // a file of cookies
			next(&i)
			client.Jar = r.cookies
		case "-L":
			client.CheckRedirect = nil
		case "--retry", "--retry-delay":
			next(&i)
		case "--retry-connrefused":
			retry = true
		default:
			if strings.HasPrefix(arg, "-") || target != "" {
				r.t.Errorf("curl %q: %s is not known here", args, arg)
			}
			target = arg
		}
	}
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	if method == "" {
		method = http.MethodGet
		if body != "" {
			method = http.MethodPost
		}
	}
	if header.Get("Accept") == "" {
		header.Set("Accept", "*/*")
	}
	header.Set("User-Agent", "curl/8")
	var response *http.Response
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		request, err := http.NewRequest(method, target, strings.NewReader(body))
		if err != nil {
			r.t.Error(err)
			return "", 3
		}
		request.Header = header
		response, err = client.Do(request)
		again := time.Now().Before(deadline)
		switch {
		case err == nil && retry && again && response.StatusCode == http.StatusServiceUnavailable:
			_ = response.Body.Close()
			continue
		case err != nil && again && strings.HasSuffix(err.Error(), "remote error: tls: internal error"):
			continue // there is no certificate yet
		case retry && again && errors.Is(err, syscall.ECONNREFUSED):
			continue
		case errors.Is(err, io.EOF):
			return "curl: (52) Empty reply from server\n", 52
		case err != nil:
			return "curl: " + err.Error() + "\n", 7
		}
		break
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return "curl: (18) transfer closed with outstanding read data remaining\n", 18
	}
	if fail && response.StatusCode >= 400 {
		return fmt.Sprintf("curl: (22) The requested URL returned error: %d\n", response.StatusCode), 22
	}
	var out bytes.Buffer
	if include {
		printHeader(&out, response)
	}
	if !discard {
		out.Write(content)
	}
	if n := out.Len(); format == "" && n > 0 && out.Bytes()[n-1] != '\n' {
		out.WriteByte('\n') // where a shell shows its prompt
	}
	out.WriteString(strings.NewReplacer("%{http_code}", fmt.Sprint(response.StatusCode), `\n`, "\n").Replace(format))
	return out.String(), 0
}

// printHeader prints a response's header as curl does, but in the order of names.
func printHeader(out *bytes.Buffer, response *http.Response) {
	var fields bytes.Buffer
	_ = response.Header.Write(&fields)
	if response.ProtoMajor == 1 {
		fmt.Fprintf(out, "%s %s\n%s\n", response.Proto, response.Status, strings.ReplaceAll(fields.String(), "\r", ""))
		return
	}
	fmt.Fprintf(out, "HTTP/%d %d\n", response.ProtoMajor, response.StatusCode)
	for line := range strings.Lines(strings.ReplaceAll(fields.String(), "\r", "")) {
		name, value, _ := strings.Cut(line, ":")
		fmt.Fprintf(out, "%s:%s", strings.ToLower(name), value)
	}
	out.WriteByte('\n')
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

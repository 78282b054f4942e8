package page

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// It does not show the URL, which may contain a password.
	unparsable = "invalid URL: cannot be parsed; in a password or query, percent-encode everything except letters, digits and - . _ ~"
	missing    = " cannot be read: no such file or directory"
)

// The URL of a page is shown without its userinfo and its query, whatever is in them.
func TestURLIsShownWithoutSecrets(t *testing.T) {
	const shown = "http://127.0.0.1:1/page"
	for text, want := range map[string]string{
		"http://bob:hunter2@127.0.0.1:1/page?token=hunter3": shown,
		"http://bob@127.0.0.1:1/page#hunter3":               shown,
		"http://bob:hunter2@hunter@127.0.0.1:1/page":        shown,
		"http://bob:%68unter2%2F@127.0.0.1:1/page":          shown,
		"http://127.0.0.1:1/page?q=//x@y&token=hunter3":     shown,
		"http://127.0.0.1:1/page?q=a b&token=hunter3":       shown,
		`http://127.0.0.1:1/page?q="a"&token=hunter3`:       shown,
		"//page.example": "https://page.example",
		"//bob:hunter2@status.example/page?token=hunter3":      "https://status.example/page",
		"HTTPS://bob:hunter2@Status.Example/page?token=hunter": "https://Status.Example/page",
	} {
		source, content, err := Check(text)
		if err != nil || content != nil || !source.Remote() || source.String() != want {
			t.Errorf("%s is shown as %q (%v), want %s", text, source, err, want)
		}
		if location := source.Location(); !strings.HasSuffix(location, strings.TrimPrefix(text, "//")) {
			t.Errorf("%s is fetched from %s", text, location)
		}
	}
}

func TestFileIsReadWhenItIsChecked(t *testing.T) {
	dir := changeDir(t)
	for _, name := range []string{"page.html", "maintenance.HTM", "begins-like-html"} {
		writeFile(t, name, "<h1>Mine.</h1>")
		for _, text := range []string{name, "./" + name, filepath.Join(dir, name)} {
			source, content, err := Check(text)
			if err != nil || content == nil || string(content.HTML) != "<h1>Mine.</h1>" {
				t.Fatalf("%s: got %+v (%v)", text, content, err)
			}
			want := filepath.Join(dir, name)
			if source.String() != want || source.Location() != want || source.Remote() || source.Insecure() {
				t.Errorf("%s comes from %+v, want %s", text, source, want)
			}
		}
	}
}

// G7
func TestWrongSourceIsRefused(t *testing.T) {
	dir := changeDir(t)
	for name, content := range map[string]string{
		"empty.html": "", "bom.html": "\ufeff\n", "latin1.html": "<p>\xfc", "large.html": strings.Repeat("x", maxSize+1),
		"file": "<p>", "notes.txt": "Not meant for visitors.",
	} {
		writeFile(t, name, content)
	}
	refused := map[string]string{
		"ftp://bob:hunter2@x/y?t=hunter3":        `invalid URL "ftp://x/y": must start with https:// or http://; for a file, give its path without a scheme`,
		"file:///x":                              `invalid URL "file:///x": must start with https://`,
		".":                                      dir + " is not a regular file",
		"sub/missing.html":                       filepath.Join(dir, "sub/missing.html") + missing,
		"../missing.html":                        filepath.Join(filepath.Dir(dir), "missing.html") + missing,
		"file/x.html":                            filepath.Join(dir, "file/x.html") + " cannot be read: not a directory",
		"status.example/x.html":                  missing + "; did you mean https://status.example/x.html?",
		"status.example":                         missing + "; did you mean https://status.example?",
		"localhost:8080/x":                       missing + "; did you mean https://localhost:8080/x?",
		"bob:hunter2@status.example/y?t=hunter3": "did you mean https://status.example/y?",
		"https:/bob:hunter2@status.example/y?t=hunter3": "did you mean https://status.example/y?",
		"https:bob:hunter2@status.example/y?t=hunter3":  "did you mean https://status.example/y?",
		"notes.txt":   filepath.Join(dir, "notes.txt") + ": the file is not named .html and does not start like HTML",
		"empty.html":  ": the page is empty",
		"bom.html":    ": the page is empty",
		"latin1.html": ": the page is not valid UTF-8; save it as UTF-8",
		"large.html":  ": the page is larger than 1 MiB",
	}
	for _, text := range []string{"https://", "https:///page.html", "https://bob:hunter2@/page.html", "//"} {
		refused[text] = "invalid URL: the host is missing (for example https://status.example.com/down.html)"
	}
	for _, text := range []string{
		"://x/y", "https://x:port/y", "https://bob:hunter2@x:port/y?t=hunter3", "https://bob:hunter2%zz@x/y",
		"https://bob:hunter2@x y/?t=hunter3", "https://bob:hunter 2@x/y", "https://bob:hunter2/x@status.example/y",
		"https://bob:hunter2?x@status.example/y", "https://bob:hunter2#x@status.example/y", `https://bob:hunter2"x@status.example/y`,
	} {
		refused[text] = unparsable
	}
	for text, want := range refused {
		_, _, err := Check(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot  %v\nwant %s", text, err, want)
		}
		if strings.Contains(fmt.Sprint(err), "did you mean") && !strings.Contains(want, "did you mean") {
			t.Errorf("%s: got %v, want no question", text, err)
		}
		noSecretIn(t, fmt.Sprint(err))
	}
}

func TestInsecureSources(t *testing.T) {
	for want, locations := range map[bool][]string{
		false: {
			"https://192.0.2.1/page", "http://localhost:1/page", "http://LOCALHOST./page", "http://shop.localhost/page",
			"http://127.0.0.1/page", "http://127.0.0.2:1/page", "http://[::1]:1/page", "page.html",
		},
		true: {
			"http://192.0.2.1/page", "http://192.0.2.1:8080/page", "http://[2001:db8::1]/page", "http://0.0.0.0/page",
			"http://status.invalid/page", "http://localhost.invalid/page",
		},
	} {
		for _, location := range locations {
			if source, err := ParseSource(location); err != nil || source.Insecure() != want {
				t.Errorf("%s: got %t (%v), want %t", location, source.Insecure(), err, want)
			}
		}
	}
}

func noSecretIn(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "hunter") || strings.Contains(text, "bob") {
		t.Errorf("a secret is told: %.500q", text)
	}
}

// changeDir makes an empty directory the working one.
func changeDir(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Chdir(dir)
	return dir
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	noError(t, os.WriteFile(path, []byte(content), 0o600))
}

package e2e

import (
	"net/http"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

const message = "Back at <b>three</b>."

func TestPageWithRefreshBringsTheVisitorBack(t *testing.T) {
	s := startShop(t, "refresh 1s", "")
	v := newVisitor(t)
	v.opens(s.url, http.StatusOK)
	v.sees("h1", "Welcome to the shop")

	s.maintenance("on", "shop", "--message", message)
	v.opens(s.url, http.StatusServiceUnavailable)
	v.sees("h1", "Down for maintenance")
	v.sees("p", message)

	s.maintenance("off", "shop")
	v.sees("h1", "Welcome to the shop")
}

// The default page has no style of its own, and is dark for a visitor whose system is.
func TestDefaultPageFollowsDarkMode(t *testing.T) {
	s := startShop(t, "", "")
	s.maintenance("on", "shop")
	v := newVisitor(t)
	v.opens(s.url, http.StatusServiceUnavailable)
	for scheme, color := range map[string]string{"dark": "rgb(255, 255, 255)", "light": "rgb(0, 0, 0)"} {
		feature := &emulation.MediaFeature{Name: "prefers-color-scheme", Value: scheme}
		if err := v.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{feature})); err != nil {
			t.Fatal(err)
		}
		v.awaits(`getComputedStyle(document.querySelector("h1")).color === "` + color + `"`)
	}
}

// customPage takes an image and a style sheet from the site, and has more styles
// and a script in itself.
const customPage = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>The shop is being painted</title>
<link rel="stylesheet" href="/maintenance-assets/style.css">
<style>#message { font-style: italic }</style>
</head>
<body>
<img id="logo" src="/maintenance-assets/logo.png" alt="Our logo">
<h1>The shop is being painted</h1>
<p id="message">{maintenance.message}</p>
<p>By script: <span id="detail">nothing</span> <span id="until">nothing</span></p>
<script>
const show = (id, text) => { document.getElementById(id).innerText = text }
fetch(location.href, {headers: {Accept: "application/json"}})
	.then(response => response.json())
	.then(problem => { show("detail", problem.detail); show("until", problem.until ?? "no end") })
</script>
</body>
</html>
`

// The site's own policy is for the app: what the page has in itself is not from the site,
// and works, and so do its image, style sheet and script.
func TestVisitorSeesTheWholeCustomPage(t *testing.T) {
	const until = "2999-01-31T03:00:00Z"
	for _, directives := range []string{"", `header Content-Security-Policy "default-src 'self'"`} {
		s := startShop(t, "page APP/page.html", directives)
		s.maintenance("on", "shop", "--message", message, "--until", until)
		v := newVisitor(t)
		v.opens(s.url, http.StatusServiceUnavailable)
		v.sees("h1", "The shop is being painted")
		v.sees("#message", message)
		v.has(`document.getElementById("logo").naturalWidth === 64`)
		v.has(`getComputedStyle(document.getElementById("message")).color === "rgb(0, 128, 0)"`)
		v.has(`getComputedStyle(document.getElementById("message")).fontStyle === "italic"`)
		v.sees("#detail", message)
		v.sees("#until", until)
	}
}

// An EventSource whose stream is terminated gives up on the 503, and one that the app makes anew, as the
// reference says, gets through when the site is open again.
func TestEventSourceOpensAgainIfTheAppMakesANewOne(t *testing.T) {
	s := startShop(t, "", "")
	v := newVisitor(t)
	v.opens(s.url, http.StatusOK)
	if err := v.run(chromedp.Evaluate(`
		var events, refused = 0;
		function listen() {
			events = new EventSource("/events");
			events.onerror = () => {
				if (events.readyState === EventSource.CLOSED) {
					refused++;
					setTimeout(listen, 500);
				}
			};
		}
		listen();`, nil)); err != nil {
		t.Fatal(err)
	}
	v.awaits("events.readyState === EventSource.OPEN")
	s.maintenance("on", "shop", "--terminate-after", "1ms")
	v.awaits("refused > 1") // by the 503, which a new one meets as well
	s.maintenance("off", "shop")
	v.awaits("events.readyState === EventSource.OPEN")
}

// The app announces what is scheduled, at the visitor's time, and nothing else.
func TestVisitorSeesWhatIsScheduled(t *testing.T) {
	s := startShop(t, "", startRecipe(t, "Announce a scheduled maintenance", "reverse_proxy"))
	v := newVisitor(t)
	v.opens(s.url, http.StatusOK)
	v.sees("h1", "Welcome to the shop")
	v.has(`document.querySelector("[role=status]") === null`)

	s.maintenance("on", "shop", "--from", "2999-01-31T02:00:00Z")
	v.opens(s.url, http.StatusOK)
	v.awaits(`document.querySelector("[role=status] time")?.innerText === new Date("2999-01-31T02:00:00Z").toLocaleString()`)
	s.maintenance("off", "shop")
	v.opens(s.url, http.StatusOK)
	v.has(`document.querySelector("[role=status]") === null`)
}

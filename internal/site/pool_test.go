package site

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// poolSite is a site and the number of its requests, by their sites.
type poolSite struct {
	*Site
	requests []string
	behind   bool // its record is about to be read again
	complete bool // it has the requests that were there before
}

func (s *poolSite) IsUnset() bool { return s.Current().Kind() == Unset }
func (s *poolSite) Complete()     { s.complete = true }
func (s *poolSite) Idles() bool   { return s.IsUnset() && !s.behind }
func (s *poolSite) Take(from *poolSite, name string) {
	from.requests = slices.DeleteFunc(from.requests, func(of string) bool {
		if of == name {
			s.requests = append(s.requests, of)
		}
		return of == name
	})
}

// testPool is a pool as configs, switches and reads use it, one step after the other.
type testPool struct {
	*Pool[*poolSite]
	entries map[string]*Entry[*poolSite] // as they were last loaded or needed
	unused  []*Entry[*poolSite]          // forgotten when their requests have ended
}

func newTestPool() *testPool {
	create := func(name string, unset bool) *poolSite {
		if unset {
			return &poolSite{Site: NewUnset(name, now)}
		}
		return &poolSite{Site: New(name, now)}
	}
	return &testPool{Pool: NewPool(create), entries: make(map[string]*Entry[*poolSite])}
}

// do does one step. A visit is counted by the site, or by its first template if the site is
// not in the pool.
func (p *testPool) do(t *testing.T, step string) {
	t.Helper()
	what, name, _ := strings.Cut(step, " ")
	e := p.entries[name]
	switch what {
	case "load":
		n, err := ParseName(name)
		noError(t, err)
		p.entries[name] = p.Acquire(n, now)
	case "unload":
		p.unused = append(p.unused, p.Release(e)...)
	case "need", "find": // by listing
		p.entries[name] = p.Need(name, what == "need")
	case "retain":
		wantEqual(t, step, p.Retain(e), true)
	case "hold":
		p.Hold(e)
	case "let":
		p.unused = append(p.unused, p.LetGo(e)...)
	case "none", "on", "error": // what its record is read as
		read := map[string]Read{"none": {}, "on": stored(t, 1, true, past, Options{}), "error": {Err: ErrInvalid}}[what]
		apply(e.Value.Site, read, now)
		p.Tidy(e)
	case "behind", "applied":
		e.Value.behind = what == "behind"
		p.Tidy(e)
	case "visit":
		if e := p.Find(name); e != nil {
			e.Value.requests = append(e.Value.requests, name)
		} else {
			p.templates[0].Value.requests = append(p.templates[0].Value.requests, name)
		}
	case "end":
		for e := range p.All() {
			e.Value.requests = slices.DeleteFunc(e.Value.requests, func(of string) bool { return of == name })
		}
	default:
		t.Fatal(step)
	}
	for _, e := range p.unused {
		if len(e.Value.requests) == 0 {
			p.Forget(e)
		}
	}
}

// String says which entries there are, what is known of them, and how many requests they have.
func (p *testPool) String() string {
	var list []string
	for e := range p.All() {
		if !e.Value.complete {
			list = append(list, "incomplete:")
		}
		kind := [...]string{"loading", "unknown", "invalid", "unset", "on"}[e.Value.Current().Kind()]
		list = append(list, strings.TrimSuffix(fmt.Sprint(e.Name(), " ", kind, " ", len(e.Value.requests)), " 0"))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// What the pool holds of the sites of templates after each step.
//
// G1, G3, G5, G8
func TestPoolHoldsOfATemplateWhatThereIsToKnow(t *testing.T) {
	const known = "load {x}; none {x} = {x} unset; "
	for name, script := range map[string]string{
		"a visited site":                "load {x} = {x} loading; visit a; visit b = {x} loading 2; none {x} = {x} unset 2; end a; end b = {x} unset",
		"a needed one":                  known + "need a = a unset, {x} unset; let a = {x} unset",
		"before the template is known":  "load {x}; need a = a loading, {x} loading; let a = a loading, {x} loading; none {x}; none a = {x} unset",
		"while the template is unknown": "load {x}; need a; let a; none a = a unset, {x} loading; none {x}; applied a = {x} unset",
		"what no template makes":        "load x-{x}; none x-{x}; need a = x-{x} unset; need x-a = x-a unset, x-{x} unset",
		"without a config":              "load {x}; unload {x} = ; need a = ",
		"a record":                      known + "need a; on a; let a = a on, {x} unset; applied a = a on, {x} unset; unload {x} = ",
		"an invalid record":             "load {x}; need a; error a; let a; none {x}; applied a = a invalid, {x} unset",
		"a record to be read again":     known + "need a; behind a; let a = a unset, {x} unset; applied a = {x} unset",
		"a listed one":                  known + "find a = a loading, {x} unset; let a = a loading, {x} unset; none a = {x} unset",
		"needed twice":                  known + "need a; need a; let a = a unset, {x} unset; let a = {x} unset",
		"requests come and go":          known + "visit a; visit b = {x} unset 2; need a = a unset 1, {x} unset 1; visit a = a unset 2, {x} unset 1; let a = {x} unset 3",
		"requests of a site that is on": known + "visit a; need a; on a; let a = a on 1, {x} unset; end a = a on, {x} unset",

		"a reload":                           known + "need a; on a; let a; load {x}; unload {x} = a on, {x} unset",
		"a reload with another template":     known + "need ab; on ab; let ab; load a{y} = ab on, a{y} loading, {x} unset; unload {x} = ab on, a{y} loading",
		"requests of a reload":               known + "visit ab; load a{y}; unload {x} = a{y} loading, {x} unset 1; need ab = ab loading 1, a{y} loading; end ab = ab loading, a{y} loading",
		"a reload with a name":               known + "need a; on a; let a; load a; unload {x} = a on; unload a = ",
		"a name of a never-switched site":    known + "visit a; load a = a unset 1, {x} unset; unload {x} = a unset 1; end a = a unset; unload a = ",
		"a name that goes":                   known + "load a = a unset, {x} unset; visit a; unload a = {x} unset 1",
		"a name that goes and is on":         known + "load a; on a; unload a = a on, {x} unset",
		"a reload with a template of a name": "load a; on a; load {x}; unload a = a on, {x} loading; none {x} = a on, {x} unset",
		"a name and a template at once":      "load a; load {x}; none a = a unset, {x} loading; none {x}; unload {x} = a unset",

		"a site that comes back":           known + "need a; on a; let a; visit a; unload {x} = a on 1; load {x} = a loading 1, {x} loading; end a = a loading, {x} loading",
		"a site that has gone":             known + "need a; on a; let a; visit a; unload {x}; need a = a on 1; end a = ",
		"by another template":              known + "need ab; on ab; let ab; visit ab; unload {x} = ab on 1; load a{y} = ab loading 1, a{y} loading",
		"by its name":                      known + "need a; on a; let a; visit a; unload {x} = a on 1; load a = a loading 1",
		"not by another name":              known + "need a; on a; let a; visit a; unload {x} = a on 1; load b = a on 1, b loading; end a = b loading",
		"a template that comes back":       known + "visit a; unload {x} = {x} unset 1; load {x} = {x} loading 1; end a = {x} loading",
		"a template that has gone":         known + "visit a; unload {x}; need a = {x} unset 1; end a = ",
		"a switch of the config that ends": known + "need a; hold a; let a; load {x}; unload {x}; on a; let a = a on, {x} unset",
		"and of its last":                  known + "need a; hold a; let a; unload {x} = a unset; on a; let a = ",
		"and of one that comes back":       known + "need a; hold a; let a; unload {x}; load {x} = a loading, {x} loading; on a; let a = a on, {x} loading",
		"and goes on for a name":           known + "need a; hold a; let a; load a; unload {x}; on a; let a = a on",
		"a restored record":                known + "need a; on a; let a; retain a; unload {x} = a on; load {x} = a loading, {x} loading; let a = a loading, {x} loading",
	} {
		p := newTestPool()
		for step := range strings.SplitSeq(script, "; ") {
			step, want, check := strings.Cut(step, " =")
			p.do(t, step)
			if got := p.String(); check && got != strings.TrimSpace(want) {
				t.Errorf("%s: after %s there are %q, want%q", name, step, got, want)
			}
		}
	}
}

func TestPoolKeepsWhatIsReferredTo(t *testing.T) {
	shop, err := ParseName("shop")
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPool()
	e := p.Acquire(shop, now)
	apply(e.Value.Site, Read{}, now)
	wantEqual(t, "the entry of a second handler", p.Acquire(shop, now), e)
	wantEqual(t, "its kind", e.Value.Current().Kind(), Unset)
	release := func(e *Entry[*poolSite]) bool { return len(p.Release(e)) > 0 }
	letGo := func(e *Entry[*poolSite]) bool { return len(p.LetGo(e)) > 0 }
	for _, step := range []struct {
		name string
		do   func(*Entry[*poolSite]) bool
		want bool
	}{
		{"released for the last time", release, false},
		{"retained while a config refers to it", p.Retain, true},
		{"released for the last time", release, false},
		{"forgotten though it is retained", func(e *Entry[*poolSite]) bool { p.Forget(e); return p.Find("shop") == nil }, false},
		{"retained though no config refers to it", p.Retain, false},
		{"another one when it comes back", func(e *Entry[*poolSite]) bool { return p.Acquire(shop, now) != e }, false},
		{"read again", func(e *Entry[*poolSite]) bool { return e.Value.Current().Kind() == Loading }, true},
		{"let go for the last time", letGo, false},
		{"released for the last time", release, true},
		{"forgotten", func(e *Entry[*poolSite]) bool { p.Forget(e); return p.Find("shop") == nil }, true},
	} {
		wantEqual(t, step.name, step.do(e), step.want)
	}

	// Work on a site continues when its config is unloaded, and when another config has it again.
	e = p.Acquire(shop, now)
	p.Retain(e)
	p.Release(e)
	p.Hold(e)
	p.Acquire(shop, now)
	for range 2 {
		wantEqual(t, "let go for the last time", letGo(e), false)
	}
	p.Release(e)
	p.Forget(e)

	other := p.Acquire(shop, now)
	p.Forget(e)
	wantEqual(t, "an entry that was dropped is another one", other != e, true)
	wantEqual(t, "entries", len(slices.Collect(p.All())), 1)
}

package site

import (
	"fmt"
	"strings"
	"testing"
)

func TestName(t *testing.T) {
	for name, want := range map[string]string{
		"shop": "shop", "Shop.Example": "shop.example", "*.example.com": "*.example.com", "a:8080": "a:8080", "0": "0",
		"": "", "-shop": "", "on": "", "OFF": "", "status": "", "help": "", "shöp": "", "a b": "", "a/b": "",
		fmt.Sprintf("%064d", 0): fmt.Sprintf("%064d", 0), fmt.Sprintf("%065d", 0): "",

		"{host}": "{host}", "Shop-{http.request.header.X-Tenant}": "shop-{http.request.header.X-Tenant}", "{a}.{b}": "{a}.{b}",
		"{host": "", "host}": "", "{}": "", "{{host}": "", "{a}}": "", "-{host}": "", "a b {host}": "", "a/{host}": "",
		strings.Repeat("a", 63) + "{x}": strings.Repeat("a", 63) + "{x}", strings.Repeat("a", 64) + "{x}": "",
	} {
		got, err := ParseName(name)
		if (err == nil) != (want != "") || err == nil && (got.String() != want || got.IsTemplate() != strings.Contains(want, "{")) {
			t.Errorf("%q: got %v %v, want %q", name, got, err, want)
		}
	}
}

func TestTemplatesThatMayYieldTheSameName(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"{a}", "{b}", true},
		{"shop-{a}", "{b}.shop", true},
		{"shop-{a}", "wiki-{a}", false},
		{"{a}.shop", "{a}.wiki", false},
		{"shop-{a}", "shop-eu-{a}", true},
		{"{a}.eu.shop", "{a}.shop", true},
		{"a{x}-b", "a{x}-c", false},
	} {
		a, _ := ParseName(test.a)
		b, _ := ParseName(test.b)
		if a.MayYieldNameOf(b) != test.want || b.MayYieldNameOf(a) != test.want {
			t.Errorf("%s and %s: want %v", test.a, test.b, test.want)
		}
	}
}

// A template yields the same name for all spellings of a host, and none for an invalid host.
func TestTemplateMakesNamesOfValues(t *testing.T) {
	long := strings.Repeat("a", 60)
	for _, test := range []struct{ template, a, b, want string }{
		{"{a}", "acme.example.com", "", "acme.example.com"},
		{"{a}", "ACME.Example.COM.:8443", "", "acme.example.com"},
		{"{a}", "acme.", "", "acme"},
		{"{a}", "acme..:80:.:443", "", "acme"},
		{"{a}", "acme:8080", "", "acme"},
		{"{a}", "acme.:", "", "acme"},
		{"{a}", "acme:http", "", "acme:http"},
		{"shop-{a}", "Acme.", "", "shop-acme"},
		{"{a}.eu", "acme.:80", "", "acme.eu"},
		{"{a}_{b}", "acme.", "EU", "acme_eu"},
		{"{a}:{b}", "acme", "8443", "acme:8443"},
		{"x{a}", long, "", "x" + long},
		{"{a}", "", "", ""},
		{"{a}", ".:80.", "", ""},
		{"{a}", "2001:DB8::1", "", "2001:db8::1"},
		{"shop-{a}", "", "", ""},
		{"shop-{a}", ":80", "", ""},
		{"{a}_{b}", "acme", "", ""},
		{"{a}", "a/b", "", ""},
		{"{a}", "a b", "", ""},
		{"{a}", "[::1]:80", "", ""},
		{"{a}", "shöp", "", ""},
		{"{a}", "{a}", "", ""},
		{"{a}", "off", "", ""},
		{"{a}{b}", "instan", "ces", ""},
		{"{a}", "-acme", "", ""},
		{"xxxxx{a}", long, "", ""},
		{"{a}", strings.Repeat("a", 1000), "", ""},
	} {
		n, err := ParseName(test.template)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := n.Expand(func(key string) string { return map[string]string{"a": test.a, "b": test.b}[key] })
		if ok != (test.want != "") || ok && got != test.want {
			t.Errorf("%s of %q and %q: got %q %v, want %q", test.template, test.a, test.b, got, ok, test.want)
		}
		if ok && !n.Yields(got) {
			t.Errorf("%s does not yield %s, which it makes", test.template, got)
		}
	}
}

// All spellings of a host are the same site.
func TestNormalizeHost(t *testing.T) {
	for host, want := range map[string]string{
		"acme.com": "acme.com", "ACME.com.:80": "acme.com", "[acme.com]": "acme.com", "[acme.com": "acme.com", "acme.com]:80": "acme.com",
		"acme.com:x:y": "acme.com", "acme.com::1": "acme.com", "acme.com:": "acme.com", "acme.com..": "acme.com",
		"[2001:DB8::1]:443": "2001:db8::1", "[2001:db8::1]": "2001:db8::1", "2001:db8::1": "2001:db8::1", "127.0.0.1:80": "127.0.0.1", "": "",
	} {
		if got := NormalizeHost(host); got != want || Normalize(got) != got {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
	}
	for index, want := range map[string]string{"0": "com", "1": "acme", "2": "", "-1": "", "x": ""} {
		if got := HostLabel("acme.com", index); got != want {
			t.Errorf("label %s: got %q, want %q", index, got, want)
		}
	}
}

// A name that a template cannot yield cannot be switched.
func TestTemplateYieldsWhatItCanMake(t *testing.T) {
	for template, names := range map[string]map[string]bool{
		"shop":     {"shop": true, "shop2": false},
		"{a}":      {"acme": true, "acme.com": true, "acme.": false, "acme:80": false, "Acme": false, "on": false, "": false, "{a}": false, "a/b": false},
		"shop-{a}": {"shop-acme": true, "shop-": false, "acme": false, "my-shop-a": false, "shop-a.": false},
		"a.b-{a}":  {"a.b-c": true, "aXb-c": false},
		"{a}:{b}":  {"acme:80": true, "acme": false},
		"{a}.x{b}": {"a.xb": true, "a.b": false, "a..xb": false},
	} {
		n, err := ParseName(template)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range names {
			if got := n.Yields(name); got != want {
				t.Errorf("%s yields %q: got %v, want %v", template, name, got, want)
			}
		}
	}
}

func FuzzTemplate(f *testing.F) {
	f.Add("shop-{a}", "Acme.:80")
	f.Add("{a}", "x")
	f.Fuzz(func(t *testing.T, template, value string) {
		n, err := ParseName(template)
		if err != nil {
			return
		}
		if again, err := ParseName(n.String()); err != nil || again.String() != n.String() {
			t.Fatalf("%q is not as it was parsed: %v", n, err)
		}
		name, ok := n.Expand(func(string) string { return value })
		if !ok {
			return
		}
		if literal, err := ParseName(name); n.IsTemplate() && (err != nil || literal.String() != name) {
			t.Fatalf("%q of %q makes %q: %v", template, value, name, err)
		}
		if strings.Count(n.String(), "{") == 1 && !n.Yields(name) {
			t.Fatalf("%q does not yield %q", template, name)
		}
	})
}

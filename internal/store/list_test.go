package store

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/caddy-maintenance/internal/site"
)

// A list of records opens the sites that are not on it. So it only counts if the storage finds what
// it has, lists what it is known to have, and lists as expected: some storage modules do not when
// they fail, or because of a "/" that others do without.
//
// G3
func TestListThatLiesIsNotBelieved(t *testing.T) {
	nothing := func(keys []string) ([]string, error) { return nil, nil }
	for name, test := range map[string]struct {
		list  func(keys []string) ([]string, error)
		fault func(ctx context.Context, op, key string) error
		names string // in the list; empty if it is rejected
	}{
		"all": {nil, nil, "acme shop"},
		"with other keys": {func(keys []string) ([]string, error) {
			return append(keys, "maintenance/sites/x.json.tmp", "maintenance/y.json", ""), nil
		}, nil, "acme shop"},
		"with a prefix":            {func(keys []string) ([]string, error) { return prefixed("/caddy/", keys), nil }, nil, "acme shop"},
		"nothing":                  {nothing, nil, ""},
		"nothing, and no journal":  {nothing, nil, ""},
		"the empty key":            {func([]string) ([]string, error) { return []string{""}, nil }, nil, ""},
		"the directory":            {func([]string) ([]string, error) { return []string{"maintenance/sites/"}, nil }, nil, ""},
		"half of it":               {func(keys []string) ([]string, error) { return without(keys, "shop"), nil }, nil, ""},
		"half of it, and an error": {func(keys []string) ([]string, error) { return keys[:1], fs.ErrNotExist }, nil, ""},
		"an error":                 {func([]string) ([]string, error) { return nil, errors.New("disk full") }, nil, ""},
		"while all is not there": {nil, func(_ context.Context, op, _ string) error {
			if op == "load" || op == "store" {
				return fs.ErrNotExist
			}
			return nil
		}, ""},
		"while it hangs": {nil, hangOn("list"), ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			i := newInstance(t, m, "acme", "shop", "{host}")
			i.follow(t)
			for _, name := range []string{"acme", "shop"} {
				if err := i.switchSite(name, site.On{}); err != nil {
					t.Fatal(err)
				}
			}
			m.set(JournalKey, "[]") // acme left it long ago
			if !strings.Contains(name, "no journal") {
				m.addEntries(Entry{Site: "shop", Version: 1, Done: true})
			}
			m.list = test.list
			m.setFault(test.fault)
			began := time.Now()
			l := <-i.List(t.Context(), i.site("{host}"), nil)
			if took := time.Since(began); took > Timeout {
				t.Errorf("%s: it took %s", name, took)
			}
			slices.Sort(l.Names)
			got := strings.Join(slices.Compact(l.Names), " ")
			if (l.Err == nil) != (test.names != "") || l.Err == nil && got != test.names {
				t.Errorf("%s: got %q %v, want %q", name, got, l.Err, test.names)
			}
		})
	}
}

// If nothing was ever switched, the list is empty, and that is no error.
func TestEmptyListIsBelieved(t *testing.T) {
	for name, list := range map[string]func([]string) ([]string, error){
		"empty": nil,
		"no directory": func(keys []string) ([]string, error) {
			return keys, map[bool]error{true: fs.ErrNotExist}[len(keys) == 0]
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory()
			i := newInstance(t, m, "{host}")
			i.follow(t)
			m.list = list
			if l := <-i.List(t.Context(), i.site("{host}"), []string{"shop"}); l.Err != nil || len(l.Names) != 1 {
				t.Errorf("%s: got %v %v", name, l.Names, l.Err)
			}
			m.setFault(failOn("load maintenance/sites/.json")) // as if sites were a file
			if l := <-i.List(t.Context(), i.site("{host}"), nil); l.Err == nil {
				t.Errorf("%s, and nothing can be read there: got %v", name, l.Names)
			}
		})
	}
}

func prefixed(prefix string, keys []string) (with []string) {
	for _, key := range keys {
		with = append(with, prefix+key)
	}
	return with
}

func without(keys []string, part string) []string {
	return slices.DeleteFunc(keys, func(key string) bool { return strings.Contains(key, part) })
}

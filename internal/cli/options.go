package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// addOptionFlags adds a flag for each option, and those that set one in another way.
func addOptionFlags(flags *pflag.FlagSet) {
	for _, option := range site.Table {
		if option.Flag != "" {
			flags.String(option.Flag, "", option.Usage)
		}
	}
	flags.String("for", "", "How long maintenance lasts until it ends by itself, such as 30m")
	flags.Bool("with-bypass-secret", false, "Make a secret link, and print it (also --with-secret)")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		switch name {
		case "secret", "with-secret":
			name = strings.Replace(name, "secret", "bypass-secret", 1)
		}
		return pflag.NormalizedName(name)
	})
}

func makesSecret(flags *pflag.FlagSet) bool {
	made, _ := flags.GetBool("with-bypass-secret")
	return made
}

// timeHints say how to give the options that are times.
var timeHints = map[string]string{
	site.OptionFrom:  "15:04, or an RFC 3339 time (for example 2026-01-31T02:00:00Z)",
	site.OptionUntil: "15:04, or an RFC 3339 time (for example 2026-01-31T03:00:00Z); for a duration, use --for",
}

// readOptions returns the options given, as the admin API takes them. A nil value clears an
// option.
func readOptions(flags *pflag.FlagSet, now time.Time) (map[string]any, error) {
	options := make(map[string]any)
	if makesSecret(flags) && flags.Changed("bypass-secret") {
		return nil, errors.New("--bypass-secret sets a secret and --with-bypass-secret generates one; give only one of them")
	}
	parser := site.Parser{Durations: caddy.ParseDuration, Now: now}
	for _, option := range site.Table {
		if option.Flag == "" || !flags.Changed(option.Flag) {
			continue
		}
		value := flags.Lookup(option.Flag).Value.String()
		if value == "" {
			options[option.Name] = nil
			continue
		}
		if hint, isTime := timeHints[option.Name]; isTime {
			value = nextTimeOfDay(value, now)
			if _, err := time.Parse(time.RFC3339, value); err != nil {
				return nil, fmt.Errorf("invalid --%s %q: must be %s", option.Flag, value, hint)
			}
		}
		if err := parser.Check(option.Name, "--"+option.Flag, value); err != nil {
			return nil, err
		}
		options[option.Name] = value
	}
	return options, readFor(options, flags, now)
}

// readFor sets when maintenance ends from how long it lasts, as given with --for, or clears it.
func readFor(options map[string]any, flags *pflag.FlagSet, now time.Time) error {
	if !flags.Changed("for") {
		return nil
	}
	if flags.Changed("until") {
		return errors.New("--for and --until both say when maintenance ends; give only one of them")
	}
	duration := flags.Lookup("for").Value.String()
	if duration == "" {
		options[site.OptionUntil] = nil
		return nil
	}
	d, err := site.DurationParser(caddy.ParseDuration).Positive(duration)
	if err != nil {
		return fmt.Errorf("invalid --for %q: %w", duration, err)
	}
	begins := now
	if from, ok := options[site.OptionFrom].(string); ok {
		if begins, err = time.Parse(time.RFC3339, from); err != nil {
			return err
		}
	}
	options[site.OptionUntil] = begins.Add(d).UTC().Truncate(time.Millisecond)
	return nil
}

// claimedBy returns who runs the command, from the name of the user and the host. Nothing proves
// it to the admin API.
func claimedBy() string {
	name := "unknown user"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return string([]rune(name)[:min(utf8.RuneCountInString(name), site.MaxBy)])
}

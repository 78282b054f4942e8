package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/caddyserver/caddy/v2"

	"example.com/caddy-maintenance/internal/site"
)

// addOptionFlags adds the flags of all options, and those that are another way to set an option.
func addOptionFlags(flags *pflag.FlagSet) {
	for _, option := range site.Table {
		flags.String(option.Flag, "", option.Usage)
	}
	flags.String("for", "", "How long until maintenance ends by itself, such as 30m")
	flags.Bool("with-bypass-secret", false, "Make such a secret, and print what to open (also --with-secret)")
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

// readOptions returns the options given, as the admin API takes them: nil clears one.
func readOptions(flags *pflag.FlagSet, now time.Time) (map[string]any, error) {
	options := make(map[string]any)
	if flags.Changed("for") {
		if flags.Changed("until") {
			return nil, errors.New("--for and --until both say when maintenance ends; give one of them")
		}
		until, err := readFor(flags.Lookup("for").Value.String(), now)
		if err != nil {
			return nil, err
		}
		options[site.OptionUntil] = until
	}
	if makesSecret(flags) && flags.Changed("bypass-secret") {
		return nil, errors.New("--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them")
	}
	parser := site.Parser{Durations: caddy.ParseDuration, Now: now}
	for _, option := range site.Table {
		if !flags.Changed(option.Flag) {
			continue
		}
		value := flags.Lookup(option.Flag).Value.String()
		if value == "" {
			options[option.Name] = nil
			continue
		}
		if option.Name == site.OptionUntil {
			value = nextTimeOfDay(value, now)
		}
		err := parser.Check(option.Name, value)
		if err != nil && option.Name == site.OptionUntil {
			err = fmt.Errorf("%w; a time of day such as 15:04 is accepted too, and --for takes a duration", err)
		}
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", option.Flag, err)
		}
		options[option.Name] = value
	}
	return options, nil
}

// readFor returns when a maintenance of that duration ends, or nil to clear the end.
func readFor(duration string, now time.Time) (until any, err error) {
	if duration == "" {
		return nil, nil
	}
	d, err := caddy.ParseDuration(duration)
	if err != nil || d <= 0 {
		return nil, fmt.Errorf("--for: %q given, a duration above zero is accepted, such as 30m", duration)
	}
	return now.Add(d).UTC().Truncate(time.Millisecond), nil
}

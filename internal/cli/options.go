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

// addOptionFlags adds the flags of all options, and those that are another way to set an option.
func addOptionFlags(flags *pflag.FlagSet) {
	for _, option := range site.Table {
		if option.Flag != "" {
			flags.String(option.Flag, "", option.Usage)
		}
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
	if makesSecret(flags) && flags.Changed("bypass-secret") {
		return nil, errors.New("--bypass-secret gives a secret and --with-bypass-secret makes one; give one of them")
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
		isTime := option.Name == site.OptionUntil || option.Name == site.OptionFrom
		if isTime {
			value = nextTimeOfDay(value, now)
		}
		err := parser.Check(option.Name, value)
		if err != nil && isTime {
			err = fmt.Errorf("%w; a time of day such as 15:04 is accepted too, and --for takes a duration", err)
		}
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", option.Flag, err)
		}
		options[option.Name] = value
	}
	return options, readFor(options, flags, now)
}

// readFor sets when a maintenance ends of which --for says how long it is, or clears that.
func readFor(options map[string]any, flags *pflag.FlagSet, now time.Time) error {
	if !flags.Changed("for") {
		return nil
	}
	if flags.Changed("until") {
		return errors.New("--for and --until both say when maintenance ends; give one of them")
	}
	duration := flags.Lookup("for").Value.String()
	if duration == "" {
		options[site.OptionUntil] = nil
		return nil
	}
	d, err := caddy.ParseDuration(duration)
	if err != nil || d <= 0 {
		return fmt.Errorf("--for: %q given, a duration above zero is accepted, such as 30m", duration)
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

// claimedBy is who switches, as far as the system says.
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

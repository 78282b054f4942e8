package maintenance

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"example.com/caddy-maintenance/internal/page"
	"example.com/caddy-maintenance/internal/site"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("maintenance", parseDirective)
	// Caddy defers a header block that deletes a field until the response is written. After
	// this directive it applies to the app's response only; before it, it would overwrite
	// Cache-Control and make 503s cacheable.
	httpcaddyfile.RegisterDirectiveOrder("maintenance", httpcaddyfile.Before, "header")
	httpcaddyfile.RegisterGlobalOption("maintenance", parseGlobalOption)
}

// parseDirective sets up the handler from Caddyfile tokens. Syntax:
//
//	maintenance [<matcher>] <site> {
//	    page          <url|file>
//	    retry_after   <duration>
//	    refresh       <duration>
//	    bypass        <matcher>
//	    bypass {
//	        <matchers...>
//	    }
//	    initial_state on|off
//	}
//
// The site is required and may contain placeholders, such as {host}: each value is then a
// separate site. bypass may be repeated: a request that matches any of them is bypassed. In a
// block, all matchers must match.
func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next() // consume directive name
	if !h.NextArg() {
		return nil, h.Err("maintenance needs the name of a site (for example maintenance shop)")
	}
	handler := &Handler{Site: h.Val()}
	if _, err := site.ParseName(handler.Site); err != nil {
		return nil, h.WrapErr(err)
	}
	if h.NextArg() {
		return nil, h.Errf("unexpected argument %q: maintenance takes one site name; give sites the same name to switch them together", h.Val())
	}

	given := make(map[string]bool)
	for h.NextBlock(0) {
		name := h.Val()
		if given[name] && name != "bypass" {
			return nil, h.Errf("%s is given twice", name)
		}
		given[name] = true

		switch name {
		case "page":
			location, err := parseOneArg(h.Dispenser)
			if err != nil {
				return nil, err
			}
			// Placeholders are replaced when the config loads, and files are read then: the
			// config may be adapted on another machine.
			if !strings.Contains(location, "{") {
				if _, err := page.ParseSource(location); err != nil {
					return nil, h.WrapErr(fmt.Errorf("page: %w", err))
				}
			}
			handler.Page = location

		case "retry_after", "refresh":
			arg, err := parseOneArg(h.Dispenser)
			if err != nil {
				return nil, err
			}
			d, err := parseDuration(h.Dispenser, name, arg)
			if err != nil {
				return nil, err
			}
			if name == "refresh" {
				handler.Refresh, err = caddy.Duration(d), checkRefresh(d)
			} else {
				handler.RetryAfter, err = caddy.Duration(d), checkRetryAfter(d)
			}
			if err != nil {
				return nil, h.WrapErr(err)
			}

		case "bypass":
			matcherSet, err := parseBypass(h)
			if err != nil {
				return nil, err
			}
			handler.BypassRaw = append(handler.BypassRaw, matcherSet)

		case "initial_state":
			state, err := parseOneArg(h.Dispenser)
			if err != nil {
				return nil, err
			}
			if _, err := parseInitialState(state); err != nil || state == "" {
				return nil, h.WrapErr(invalidInitialState(state))
			}
			handler.InitialState = state

		default:
			return nil, h.Errf("unknown subdirective %q; maintenance knows page, retry_after, refresh, bypass and initial_state", name)
		}
	}
	return handler, nil
}

// parseBypass parses the matcher token or the block of matchers after bypass.
func parseBypass(h httpcaddyfile.Helper) (caddy.ModuleMap, error) {
	matcherSet, isMatcher, err := h.MatcherToken()
	switch {
	case err != nil:
		return nil, h.Errf("bypass: %w", err)
	case isMatcher:
		if h.NextArg() {
			return nil, h.Errf("unexpected argument %q: bypass takes one matcher; repeat bypass if any of several may match, or use a block if all must match", h.Val())
		}
		if h.NextBlock(h.Nesting()) {
			return nil, h.Err("bypass takes a matcher or a block of matchers, not both")
		}
	case h.Val() != "bypass":
		return nil, h.Errf("invalid bypass %q: must be a matcher (for example @name, /healthz or a block of matchers)", h.Val())
	default:
		if matcherSet, err = caddyhttp.ParseCaddyfileNestedMatcherSet(h.Dispenser); err != nil {
			return nil, h.Errf("bypass: %w", err)
		}
	}
	if len(matcherSet) == 0 {
		return nil, h.WrapErr(errEmptyBypass)
	}
	return matcherSet, nil
}

// parseGlobalOption sets up the app from Caddyfile tokens. Syntax:
//
//	maintenance {
//	    sync_interval <duration>|off
//	}
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // consume option name
	if existing != nil {
		return nil, d.Err("the global option maintenance is given twice")
	}
	if d.NextArg() {
		return nil, d.Errf("unexpected argument %q: the global option maintenance takes none; a site name belongs to the directive in a site block", d.Val())
	}
	app := new(App)
	given := false
	for d.NextBlock(0) {
		name := d.Val()
		if name != "sync_interval" {
			return nil, d.Errf("unknown option %q; maintenance knows sync_interval", name)
		}
		if given {
			return nil, d.Errf("%s is given twice", name)
		}
		given = true
		arg, err := parseOneArg(d)
		if err != nil {
			return nil, err
		}
		if arg == "off" {
			app.SyncInterval = -1
			continue
		}
		interval, err := parseDuration(d, name, arg)
		if err != nil {
			return nil, err
		}
		if err := checkSyncInterval(interval); err != nil {
			return nil, d.WrapErr(err)
		}
		app.SyncInterval = caddy.Duration(interval)
	}
	return httpcaddyfile.App{
		Name:  "maintenance",
		Value: caddyconfig.JSON(app, nil),
	}, nil
}

// parseOneArg returns the only argument of a subdirective.
func parseOneArg(d *caddyfile.Dispenser) (string, error) {
	name := d.Val()
	args := d.RemainingArgs()
	if len(args) != 1 {
		return "", d.Errf("%s takes one argument, got %d", name, len(args))
	}
	if d.NextBlock(d.Nesting()) {
		return "", d.Errf("%s takes no block", name)
	}
	return args[0], nil
}

func parseDuration(d *caddyfile.Dispenser, name, arg string) (time.Duration, error) {
	duration, err := caddy.ParseDuration(arg)
	if err != nil {
		return 0, d.Errf("invalid %s %q: must be a duration with a unit (for example 30s)", name, arg)
	}
	return duration, nil
}

// checkShorthands refuses shorthands of the Caddyfile in a name from JSON. Only the Caddyfile adapter
// expands them: they would have no value, and nothing would block the sites that an operator
// switches.
func checkShorthands(name *site.Name) error {
	if !name.IsTemplate() {
		return nil
	}
	segment := caddyfile.Segment{{Text: name.String()}}
	httpcaddyfile.NewShorthandReplacer().ApplyToSegment(&segment)
	if full := segment[0].Text; full != name.String() {
		return fmt.Errorf("invalid site %q: has a shorthand of the Caddyfile, which has no value in JSON; write %s", name, full)
	}
	return nil
}

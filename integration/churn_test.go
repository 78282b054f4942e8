package integration

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// setting is a number that a soak has in the environment.
func setting(variable string, usually int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return usually
}

// G2, G3, G4: Whatever is done at whichever instance, and whichever of them is killed,
// the site is what the table of states says.
func TestRandomSwitchesFollowTheTableOfStates(t *testing.T) {
	eachKind(t, func(t *testing.T, k kind) {
		seed := uint64(setting("MAINTENANCE_TEST_SEED", int(time.Now().UnixNano()&0xffffff)))
		random := rand.New(rand.NewPCG(seed, 0))
		t.Logf("MAINTENANCE_TEST_SEED=%d", seed)

		fleet := newFleet(t, k, 3)
		is := func(i instance, want status) error {
			got, err := i.try(http.MethodGet, k.name, "")
			if err != nil {
				return err
			}
			if !got.sameSwitch(want) {
				return fmt.Errorf("the site is %+v, want %+v", got, want)
			}
			if code := i.site.visit(); (code == http.StatusOK) != (want.State == "off") {
				return fmt.Errorf("a visitor got %d of a site that is %s", code, want.State)
			}
			return nil
		}
		now := status{State: "off"}
		var done []string
		for n := range setting("MAINTENANCE_TEST_SWITCHES", 100) {
			at := random.IntN(len(fleet))
			i := fleet[at]
			operation := []string{"PUT", "PATCH", "DELETE", "PUT", "PATCH", "DELETE", "kill", "reload"}[random.IntN(8)]
			done = append(done, fmt.Sprintf("%s at %d", operation, at))
			last := strings.Join(done[max(0, len(done)-10):], ", ")
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%v\nafter %s", err, last)
				}
			}
			switch operation {
			case "kill":
				i.kill()
				i.start(i.caddyfile(i.site))
				check(is(i, now))
			case "reload":
				check(i.load(i.caddyfile(i.site.marked(n))))
				i.site.awaitConfig(t, n)
			default:
				var err error
				now, err = i.switchRandomly(operation, n, now)
				check(err)
				check(is(i, now))
			}
			if random.IntN(2) == 0 {
				continue // the others may not know yet
			}
			for _, i := range fleet {
				eventually(t, patience, fmt.Sprintf("an instance is %+v after %s", now, last), func() bool { return is(i, now) == nil })
			}
		}
	})
}

// switchRandomly makes a switch, and returns what the table of states makes of a site
// that was as before.
func (i instance) switchRandomly(method string, n int, before status) (status, error) {
	body, code, after := "", http.StatusOK, before
	if method != http.MethodDelete {
		body = fmt.Sprintf(`{"message": "Migration %d."}`, n)
	}
	switch {
	case method == http.MethodPut, method == http.MethodPatch && before.State == "on":
		after.State, after.Message = "on", fmt.Sprintf("Migration %d.", n)
	case method == http.MethodPatch:
		code = http.StatusConflict
	case before.State == "on" || before.Since.IsZero():
		after = status{State: "off"}
	}
	began := time.Now().Truncate(time.Second)
	got, answer, err := i.request(method, "/maintenance/"+i.site.name, body)
	if err != nil || got != code {
		return after, fmt.Errorf("%s got %v %d %s, want %d", method, err, got, answer, code)
	}
	if code == http.StatusOK && (after.State != before.State || after.Since.IsZero()) {
		var answered status
		if err := json.Unmarshal([]byte(answer), &answered); err != nil {
			return after, err
		}
		after.Since = answered.Since
		if before.Since.IsZero() && after.State == "off" && after.Since.IsZero() {
			return after, nil // it was never switched on
		}
		if after.Since.Before(began) || after.Since.After(time.Now()) {
			return after, fmt.Errorf("since %s, want now", after.Since)
		}
	}
	return after, nil
}

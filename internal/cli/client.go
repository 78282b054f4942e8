package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"example.com/caddy-maintenance/internal/api"
)

// client sends requests to the admin API.
type client struct{ address string }

// instances returns what the instances of the fleet say about a site. If wait is above zero, it
// returns when all are drained, or after that time.
func (c client) instances(site string, wait time.Duration) (list []api.Instance, err error) {
	uri := api.SitePath(site) + api.InstancesPath
	if wait > 0 {
		uri += "?" + api.WaitParameter + "=" + wait.String()
	}
	err = c.send(http.MethodGet, uri, nil, &list)
	return list, err
}

// send sends body, if it is not nil, and decodes the answer.
func (c client) send(method, uri string, body map[string]any, answer any) error {
	_, err := c.do(method, uri, nil, body, answer)
	return err
}

// do is send with more headers, and returns those of the answer.
func (c client) do(method, uri string, header http.Header, body map[string]any, answer any) (http.Header, error) {
	var reader io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(encoded)
	}
	// AdminAPIRequest makes a transport for each request, and nothing would close its connection.
	header = header.Clone()
	if header == nil {
		header = make(http.Header)
	}
	header.Set("Connection", "close")
	response, err := caddycmd.AdminAPIRequest(c.address, method, uri, header, reader)
	for n := 0; method == http.MethodGet && wasCut(err) && n < 3; n++ {
		response, err = caddycmd.AdminAPIRequest(c.address, method, uri, header, nil)
	}
	if err != nil {
		return nil, explain(err, c.address)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
		return nil, fmt.Errorf("reading the admin API's answer: %w", err)
	}
	return response.Header, nil
}

// wasCut reports whether the admin endpoint closed the connection before it answered. A reload
// does that when it replaces the endpoint.
func wasCut(err error) bool {
	return err != nil && (strings.HasSuffix(err.Error(), "EOF") || strings.HasSuffix(err.Error(), "connection reset by peer"))
}

// apiError is a refusal by the admin API.
type apiError struct {
	status  int
	message string
}

func (e *apiError) Error() string { return e.message }

// refusal is how AdminAPIRequest (in Caddy's cmd/commandfuncs.go) reports a status of 400
// or more.
var refusal = regexp.MustCompile(`(?s)HTTP (\d{3}): (.*)$`)

// explain turns an error of AdminAPIRequest into one that says what to do about it.
func explain(err error, address string) error {
	parts := refusal.FindStringSubmatch(err.Error())
	if parts == nil {
		if strings.Contains(err.Error(), "permission denied") {
			return fmt.Errorf("no permission to open the socket of Caddy's admin API, %s; run this as the user that Caddy runs as, or with sudo (%w)", address, err)
		}
		if path, isSocket := strings.CutPrefix(address, "unix/"); isSocket && !strings.HasPrefix(path, "/") {
			err = fmt.Errorf("%w; an absolute path begins with a second slash: unix//%s", err, path)
		}
		if strings.HasPrefix(err.Error(), "performing request:") {
			return fmt.Errorf("Caddy cannot be reached at %s; start it, or say with --address or --config where its admin API listens (%w)", address, err) //nolint:staticcheck // a name
		}
		return err
	}
	status, _ := strconv.Atoi(parts[1])
	var answer api.Error
	if json.Unmarshal([]byte(parts[2]), &answer) != nil || answer.Error == "" {
		if status == http.StatusNotFound {
			return fmt.Errorf("the Caddy at %s was built without the maintenance module; if you have installed another one, restart the service (a reload keeps the old binary)", address)
		}
		return err
	}
	return &apiError{status, answer.Error}
}

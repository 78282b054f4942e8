package cli

import (
	"encoding/json"
	"testing"
)

// The configs have the parts of adapted Caddyfiles that matter.
func TestURLOfASite(t *testing.T) {
	routes := func(match, site string) string {
		return `"routes":[{"match":[` + match + `],"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"vars"},{"handler":"maintenance","site":"` + site + `"}]}]}]}]`
	}
	shop := routes(`{"host":["*.example.com","shop.example.com"]}`, "Shop")
	for _, test := range []struct{ app, name, want string }{
		{`{"servers":{"srv0":{"listen":[":443"],` + shop + `}}}`, "shop", "https://shop.example.com"},
		{`{"servers":{"srv0":{"listen":[":8443"],` + shop + `}}}`, "shop", "https://shop.example.com:8443"},
		{`{"https_port":8443,"servers":{"srv0":{"listen":["127.0.0.1:8443"],` + shop + `}}}`, "shop", "https://shop.example.com"},
		{`{"servers":{"srv0":{"listen":[":80"],` + shop + `}}}`, "shop", "http://shop.example.com"},
		{`{"http_port":8080,"servers":{"srv0":{"listen":[":8080"],` + shop + `}}}`, "shop", "http://shop.example.com"},
		{`{"servers":{"srv0":{"listen":[":8080"],"automatic_https":{"skip":["shop.example.com"]},` + shop + `}}}`, "shop", "http://shop.example.com:8080"},
		{`{"servers":{"srv0":{"listen":[":8080"],"automatic_https":{"disable":true},` + shop + `}}}`, "shop", "http://shop.example.com:8080"},
		{`{"servers":{"srv0":{"listen":[":8080"],"automatic_https":{"disable":true},"tls_connection_policies":[{}],` + shop + `}}}`, "shop", "https://shop.example.com:8080"},
		{`{"servers":{"srv0":{"listen":[":443"],` + routes(`{"host":["*.example.com"]}`, "{http.request.host}") + `}}}`, "acme.example.com", "https://acme.example.com"},
		{`{"servers":{"srv0":{"listen":[":443"],` + shop + `}}}`, "wiki", ""},
		{`{"servers":{"srv0":{"listen":[":443"],` + routes(`{"host":["*.example.com"]}`, "shop") + `}}}`, "shop", ""},
		{`{"servers":{"srv0":{"listen":[":443"],` + routes(`{"path":["/a"]}`, "shop") + `}}}`, "shop", ""},
		{`{"servers":{"srv0":{` + shop + `}}}`, "shop", ""},
		{`{"servers":{"srv0":{"listen":["unix//run/x"],` + shop + `}}}`, "shop", ""},
		{`null`, "shop", ""},
	} {
		var app httpApp
		if err := json.Unmarshal([]byte(test.app), &app); err != nil {
			t.Fatal(err)
		}
		if got := app.siteURL(test.name); got != test.want {
			t.Errorf("%s of %s: got %q, want %q", test.name, test.app, got, test.want)
		}
	}
}

// Command caddy is Caddy with its standard modules and maintenance mode.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "example.com/caddy-maintenance"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}

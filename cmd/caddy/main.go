// Command caddy is Caddy with its standard modules and maintenance mode.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "example.com/caddy-maintenance"
)

func main() {
	caddycmd.Main()
}

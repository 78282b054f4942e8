package maintenance

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"example.com/caddy-maintenance/internal/cli"
)

func init() {
	caddycmd.RegisterCommand(cli.Command())
}

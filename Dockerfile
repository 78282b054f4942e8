# A Caddy with maintenance mode, built from this checkout:
#
#	docker build -t caddy-maintenance .
#
# Keep /data on a volume: that is where a site's maintenance is stored, so that a new
# container does not open what the last one had closed.

FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN go tool -modfile=tools/go.mod xcaddy build v2.11.9 --with example.com/caddy-maintenance@v0.0.0=. --output /usr/bin/caddy

FROM caddy:2.11.9
COPY --from=build /usr/bin/caddy /usr/bin/caddy

# A Caddy with maintenance mode, built from this checkout:
#
#	docker build -t caddy-maintenance .
#
# Keep /data on a volume: there Caddy stores which sites are in maintenance, so that a new
# container does not open what the last one had closed.

FROM caddy:2.11.9-builder AS builder
COPY . /src
RUN xcaddy build --with example.com/caddy-maintenance@v0.0.0=/src

FROM caddy:2.11.9
COPY --from=builder /usr/bin/caddy /usr/bin/caddy

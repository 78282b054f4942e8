package main

import (
	"context"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
)

func init() {
	caddy.RegisterModule(new(slowStorage))
}

// slowStorage is a directory that is as slow as a storage far away.
type slowStorage struct {
	Root string `json:"root"`

	certmagic.FileStorage
}

func (*slowStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.scale_slow", New: func() caddy.Module { return new(slowStorage) }}
}

func (s *slowStorage) CertMagicStorage() (certmagic.Storage, error) {
	s.Path = s.Root
	return s, nil
}

func (s *slowStorage) Load(ctx context.Context, key string) ([]byte, error) {
	time.Sleep(slow)
	return s.FileStorage.Load(ctx, key)
}

func (s *slowStorage) Store(ctx context.Context, key string, value []byte) error {
	time.Sleep(slow)
	return s.FileStorage.Store(ctx, key, value)
}

func (s *slowStorage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	time.Sleep(slow)
	return s.FileStorage.List(ctx, path, recursive)
}

package main
import "context"
func (b *bench) size(ctx context.Context) error { return nil }
func (b *bench) proxy(ctx context.Context) error { return nil }
type shape struct { services, endpoints int }

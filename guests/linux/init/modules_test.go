//go:build linux

package main

import (
	"slices"
	"testing"
)

func TestDependencies(t *testing.T) {
	const dep = "virtio.ko:\nvirtio_ring.ko: virtio.ko\nvirtio-rng.ko: virtio_ring.ko virtio.ko\n"
	tests := []struct {
		name string
		want []string
	}{
		{"virtio", []string{"virtio.ko"}},
		{"virtio_rng", []string{"virtio.ko", "virtio_ring.ko", "virtio-rng.ko"}},
		{"virtio-rng", []string{"virtio.ko", "virtio_ring.ko", "virtio-rng.ko"}},
		{"ring", nil},
	}
	for _, tt := range tests {
		got, err := dependencies(dep, tt.name)
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.want != nil) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

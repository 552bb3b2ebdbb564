package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/guests/linux"
)

// guestsDir is where users, and the demo, find the guests; cacheDir keeps what was fetched.
const (
	guestsDir = "build/guests"
	cacheDir  = "build/kernels"
)

// guests builds the bare guest and a Linux guest: build/guests/bare.elf, vmlinuz and initramfs.
func guests(ctx context.Context) error {
	if _, err := bare.Build(ctx, guestsDir); err != nil {
		return err
	}
	kernel, err := linux.Find(ctx, "gokrazy", cacheDir)
	if err != nil {
		return err
	}
	if err := place(kernel.Image, filepath.Join(guestsDir, "vmlinuz")); err != nil {
		return err
	}
	if err := linux.Build(ctx, kernel, filepath.Join(guestsDir, "initramfs")); err != nil {
		return err
	}
	fmt.Printf("setup: guests are in %s\n", guestsDir)
	return nil
}

// place makes target another name of source.
func place(source, target string) error {
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(source, target); err != nil {
		return fmt.Errorf("place the guest's kernel: %w", err)
	}
	return nil
}

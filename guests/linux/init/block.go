//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	blockSize  = 4096
	chunkSize  = 1 << 20 // what is written or read at once
	maxPattern = 1 << 20 // MiB
)

// blockCommand writes the pattern of a seed over the first MiB of a device, or verifies it.
func blockCommand(args []string, write bool) (string, error) {
	seed, err := strconv.ParseUint(args[1], 0, 64)
	if err != nil {
		return "", fmt.Errorf("seed: %w", err)
	}
	mib, err := strconv.ParseUint(args[2], 0, 64)
	if err != nil || mib == 0 || mib > maxPattern {
		return "", fmt.Errorf("%q is not a number of MiB from 1 to %d", args[2], maxPattern)
	}
	start := time.Now()
	what := "verified"
	if write {
		what = "wrote"
		err = writePattern(args[0], seed, int64(mib))
	} else {
		err = verifyPattern(args[0], seed, int64(mib))
	}
	if err != nil {
		return "", err
	}
	took := time.Since(start)
	return fmt.Sprintf("%s %d MiB of %s with seed %d in %v, %.1f MiB/s", what, mib, args[0], seed, took.Round(time.Millisecond), float64(mib)/took.Seconds()), nil
}

func writePattern(device string, seed uint64, mib int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	chunk := make([]byte, chunkSize)
	for i := range mib {
		fillChunk(chunk, seed, uint64(i))
		if _, err := f.WriteAt(chunk, i*chunkSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func verifyPattern(device string, seed uint64, mib int64) error {
	// Past the page cache: what is compared comes from the disk. That needs memory aligned to its blocks.
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	chunk, err := unix.Mmap(-1, 0, chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map memory for a chunk: %w", err)
	}
	defer unix.Munmap(chunk) //nolint:errcheck // nothing to be done about it
	want := make([]byte, chunkSize)
	for i := range mib {
		if _, err := f.ReadAt(chunk, i*chunkSize); err != nil {
			return err
		}
		fillChunk(want, seed, uint64(i))
		if bytes.Equal(chunk, want) {
			continue
		}
		for at := 0; at < chunkSize; at += blockSize {
			if !bytes.Equal(chunk[at:at+blockSize], want[at:at+blockSize]) {
				return fmt.Errorf("%s differs in the block at byte %d: it starts with %x, not %x", device, i*chunkSize+int64(at), chunk[at:at+8], want[at:at+8])
			}
		}
	}
	return nil
}

// fillChunk writes the pattern of chunk number n: every block differs from every other one and from those of other seeds.
func fillChunk(chunk []byte, seed, n uint64) {
	for at := 0; at < len(chunk); at += 8 {
		// splitmix64 of the seed and the word's place
		x := seed*0x9e3779b97f4a7c15 + n*chunkSize + uint64(at) + 1
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(chunk[at:], x^x>>31)
	}
}

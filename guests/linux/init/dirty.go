//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	pageSize = 4096
	words    = pageSize / 8
	// maxWorkingSet bounds the pages of a dirtier: 64 GiB, and its rounds fit their part of a word.
	maxWorkingSet = 1 << 24
	// dirtyTick is how often a dirtier writes its share: shorter than any checkpoint interval that matters.
	dirtyTick = 2 * time.Millisecond
)

// dirtier changes pages at a steady rate, one after the other over a working set, and checks before each change that
// the page still holds what was written last. Its own notes are in other pages: a page that a checkpoint forgot, or
// that comes from another checkpoint than the rest, does not fit them.
type dirtier struct {
	rate  int // pages a second
	pages int

	memory []byte
	rounds []uint32 // of each page, how often it was written

	written atomic.Uint64
	lost    atomic.Uint64
}

// parseDirtier reads "PAGES_PER_SECOND:WORKING_SET_PAGES".
func parseDirtier(value string) (*dirtier, error) {
	rate, pages, ok := strings.Cut(value, ":")
	if !ok {
		return nil, errors.New("want PAGES_PER_SECOND:WORKING_SET_PAGES")
	}
	r, err := strconv.ParseUint(rate, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("pages a second: %w", err)
	}
	p, err := strconv.ParseUint(pages, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("pages of the working set: %w", err)
	}
	if r == 0 || p == 0 || p > maxWorkingSet {
		return nil, fmt.Errorf("want at least one page a second, and a working set of 1 to %d pages", maxWorkingSet)
	}
	return &dirtier{rate: int(r), pages: int(p)}, nil
}

// start maps the working set and begins.
func (d *dirtier) start() error {
	memory, err := unix.Mmap(-1, 0, d.pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map a working set of %d pages: %w", d.pages, err)
	}
	d.memory, d.rounds = memory, make([]uint32, d.pages)
	go d.run()
	return nil
}

// run writes for ever. What it could not do in time is not made up for: after a pause there is no burst.
func (d *dirtier) run() {
	next, due := 0, 0.0
	last := time.Now()
	for now := range time.Tick(dirtyTick) {
		share := min(now.Sub(last), 10*dirtyTick)
		last = now
		for due += share.Seconds() * float64(d.rate); due >= 1; due-- {
			d.touch(next)
			next = (next + 1) % d.pages
		}
	}
}

// touch checks a page and writes it.
func (d *dirtier) touch(page int) {
	b := d.memory[page*pageSize : (page+1)*pageSize]
	round := d.rounds[page]
	if want := mark(page, round); round > 0 && (word(b, 0) != want || word(b, place(round)) != want) {
		d.lost.Add(1)
		fmt.Printf("pollux-guest: memory lost: page %d holds %x and %x, not %x\n", page, word(b, 0), word(b, place(round)), want)
	}
	round++
	m := mark(page, round)
	binary.LittleEndian.PutUint64(b, m)
	binary.LittleEndian.PutUint64(b[8*place(round):], m)
	d.rounds[page] = round
	d.written.Add(1)
}

// mark is what a page holds after a round.
func mark(page int, round uint32) uint64 { return uint64(page)<<32 | uint64(round) }

// place is where else in the page a round leaves its mark: word 1 to the last.
func place(round uint32) int { return 1 + int(round*61%(words-1)) }

func word(page []byte, n int) uint64 { return binary.LittleEndian.Uint64(page[8*n:]) }

func (d *dirtier) String() string {
	return fmt.Sprintf("dirtied %d pages lost %d", d.written.Load(), d.lost.Load())
}

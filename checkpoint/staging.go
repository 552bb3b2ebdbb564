package checkpoint

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// Map returns size bytes of zeroed memory outside of the Go heap, which take host memory when they are first touched. Free it with Unmap.
func Map(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB of staging: %w", size>>20, err)
	}
	// Advice that a kernel without huge pages refuses; all still works. A core dump must not carry the guest's secrets.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	return b, nil
}

// Unmap frees what Map returned.
func Unmap(b []byte) error {
	if b == nil {
		return nil
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("unmap staging: %w", err)
	}
	return nil
}

// Trim gives back the host memory of b, which reads as zeros afterwards. It is for what one unusually large epoch has touched.
func Trim(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		return fmt.Errorf("trim staging: %w", err)
	}
	return nil
}

// Area is a bounded piece of staging: copies of guest pages, in ascending order, and state. The zero Area is not usable.
type Area struct {
	State []byte // kept from epoch to epoch, so that appending to State[:0] doesn't allocate

	data []byte
	used int
	runs []run
}

type run struct {
	first uint64 // guest frame number
	pages int
}

// NewArea returns an Area for the given number of pages.
func NewArea(pages int) (*Area, error) {
	data, err := Map(pages * wire.PageSize)
	if err != nil {
		return nil, err
	}
	// As many runs as pages, in the worst case: every second page of memory is dirty.
	return &Area{data: data, runs: make([]run, 0, pages)}, nil
}

// Close frees the memory.
func (a *Area) Close() error {
	data := a.data
	a.data, a.runs, a.used = nil, nil, 0
	return Unmap(data)
}

// Reset empties the area.
func (a *Area) Reset() {
	a.State, a.runs, a.used = a.State[:0], a.runs[:0], 0
}

// Pages is the number of pages in the area.
func (a *Area) Pages() int { return a.used / wire.PageSize }

// Full reports whether not one more page fits.
func (a *Area) Full() bool { return a.used == len(a.data) }

// Copy copies as many of the pages in src as fit and returns their number. The first has frame number first, which is above that of
// every page in the area. src is a whole number of pages.
func (a *Area) Copy(first uint64, src []byte) int {
	n := copy(a.data[a.used:], src) / wire.PageSize
	if n > 0 {
		a.used += n * wire.PageSize
		a.runs = append(a.runs, run{first, n})
	}
	return n
}

// Runs yields the runs of pages in order: frame number and content.
func (a *Area) Runs(yield func(first uint64, data []byte) bool) {
	at := 0
	for _, r := range a.runs {
		end := at + r.pages*wire.PageSize
		if !yield(r.first, a.data[at:end:end]) {
			return
		}
		at = end
	}
}

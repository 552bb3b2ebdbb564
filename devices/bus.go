package devices

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
)

// Bus maps address ranges to handlers. A machine has two: port I/O and memory-mapped I/O.
//
// Lookups run on every vCPU exit and take no lock: they read an immutable, sorted table, which Register and Unregister
// replace.
type Bus struct {
	mu    sync.Mutex // serialises the writers
	table atomic.Pointer[[]span]
}

type span struct {
	base, last uint64 // last is inclusive, so that a range may end at the top of the address space
	handler    Handler
}

// NewBus returns a bus that nobody answers on.
func NewBus() *Bus {
	b := &Bus{}
	b.table.Store(&[]span{})
	return b
}

// Register gives the range [base, base+size) to h. A range that is empty, that wraps, or that overlaps another one is
// refused.
func (b *Bus) Register(base, size uint64, h Handler) error {
	if size == 0 || base+(size-1) < base {
		return fmt.Errorf("register range at %#x: size %#x is empty or wraps", base, size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.table.Load()
	last := base + (size - 1)
	i := sort.Search(len(old), func(i int) bool { return old[i].last >= base })
	if i < len(old) && old[i].base <= last {
		return fmt.Errorf("register range %#x-%#x: overlaps %#x-%#x", base, last, old[i].base, old[i].last)
	}
	table := make([]span, 0, len(old)+1)
	table = append(table, old[:i]...)
	table = append(table, span{base, last, h})
	table = append(table, old[i:]...)
	b.table.Store(&table)
	return nil
}

// Unregister takes back the range that starts at base. It reports whether there was one. An access that another vCPU
// began before may still reach the handler.
func (b *Bus) Unregister(base uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := *b.table.Load()
	i := sort.Search(len(old), func(i int) bool { return old[i].base >= base })
	if i == len(old) || old[i].base != base {
		return false
	}
	table := make([]span, 0, len(old)-1)
	table = append(table, old[:i]...)
	table = append(table, old[i+1:]...)
	b.table.Store(&table)
	return true
}

// Read fills p from the handler of the range that holds [address, address+len(p)). When there is none it fills p with
// ones, as an empty bus does, and returns false.
func (b *Bus) Read(address uint64, p []byte) bool {
	s := b.lookup(address, len(p))
	if s == nil {
		for i := range p {
			p[i] = 0xff
		}
		return false
	}
	s.handler.Read(address-s.base, p)
	return true
}

// Write hands p to the handler of the range that holds [address, address+len(p)). When there is none it returns false,
// and the write is lost, as on an empty bus.
func (b *Bus) Write(address uint64, p []byte) bool {
	s := b.lookup(address, len(p))
	if s == nil {
		return false
	}
	s.handler.Write(address-s.base, p)
	return true
}

func (b *Bus) lookup(address uint64, n int) *span {
	table := *b.table.Load()
	lo, hi := 0, len(table)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if table[mid].last < address {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if n == 0 || lo == len(table) || table[lo].base > address || uint64(n-1) > table[lo].last-address {
		return nil
	}
	return &table[lo]
}

package vmm

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// Rounds of the dirty log report exactly the pages that the guest wrote in them.
func TestDirtyLogIsExact(t *testing.T) {
	m, ports := newTestMachine(t, testConfig(t, 1))
	program(t, m, progDirty, func(_ int, r *kvm.Regs) { r.RSI = 0xfff })
	running(t, m)
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	got := guestmem.NewBitmap(m.memory.Frames())
	freeze(t, m)
	collect(t, m, got)
	ports.take() // what was written before
	total := 0
	unreported := map[uint32]bool{}
	for range 50 {
		thaw(t, m)
		time.Sleep(5 * time.Millisecond)
		freeze(t, m)
		got.Clear()
		collect(t, m, got)
		reported := ports.take()
		total += len(reported)
		logged := map[uint32]bool{}
		for first, n := got.NextRun(0); n > 0; first, n = got.NextRun(first + n) {
			for gfn := first; gfn < first+n; gfn++ {
				// Below are page tables, whose accessed and dirty bits the processor sets.
				if gfn >= guestData>>guestmem.PageShift {
					logged[uint32(gfn-guestData>>guestmem.PageShift)] = true
				}
			}
		}
		for page := range reported {
			// What the guest had written, but not reported, when it was stopped last is in the log of that round.
			if !logged[page] && !unreported[page] {
				t.Fatalf("page %d was written and is not in the log", page)
			}
		}
		clear(unreported)
		for page := range logged {
			if !reported[page] {
				unreported[page] = true
			}
		}
		if len(unreported) > 1 {
			t.Fatalf("%d pages are in the log that the guest did not write", len(unreported))
		}
	}
	if total == 0 {
		t.Fatal("the guest wrote nothing")
	}
	t.Logf("%d pages in 50 rounds", total)
	thaw(t, m)
}

// Rounds that are collected while the guest runs lose nothing: copying each round's pages after it was collected, and the
// last one's when the guest is frozen, gives the guest's memory.
func TestRunningCollectionLosesNothing(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 2))
	program(t, m, progWalk, func(_ int, r *kvm.Regs) { r.RSI = 200 })
	running(t, m)
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	dirty := guestmem.NewBitmap(m.memory.Frames())
	twin, err := guestmem.New(guestMemory)
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Close()
	copyMemory(twin, m.memory)
	for round := 0; round < 50 || counter(t, m, guestData+8) == 0; round++ {
		dirty.Clear()
		collect(t, m, dirty)
		copyPages(t, twin, m.memory, dirty)
		// A device writes too.
		if err := m.memory.WriteAt([]byte{1, 2, 3}, 40<<20); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	freeze(t, m)
	dirty.Clear()
	collect(t, m, dirty)
	if !dirty.Has(40 << 20 >> guestmem.PageShift) {
		t.Error("the page that a device wrote is not dirty")
	}
	copyPages(t, twin, m.memory, dirty)
	for i, r := range m.memory.Regions() {
		if !slices.Equal(r.Bytes, twin.Regions()[i].Bytes) {
			t.Errorf("region %d of the copy differs", i)
		}
	}
	thaw(t, m)
}

// Memory above the hole is logged at its own frame numbers.
func TestDirtyLogAboveTheHole(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.MemoryBytes = guestmem.HoleStart + 64<<20
	m, _ := newTestMachine(t, cfg)
	const high = guestmem.HoleEnd + 10<<20
	program(t, m, progWalk, func(_ int, r *kvm.Regs) { r.RDI, r.RSI = 2<<30, 3 })
	// The third GiB of the guest's virtual memory is where the high memory is.
	writeEntry(t, m, 1, 2, guestTables+4<<12)
	writeEntry(t, m, 4, 0, high&^(2<<20-1)|0x80)
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	dirty := guestmem.NewBitmap(m.memory.Frames())
	collect(t, m, dirty)
	if n := dirty.Count(); n != 0 {
		t.Errorf("%d pages are dirty before the guest runs", n)
	}
	running(t, m)
	eventually(t, "guest counts", func() bool { return counter(t, m, high+8) > 0 })
	freeze(t, m)
	collect(t, m, dirty)
	for page := range uint64(3) {
		if !dirty.Has(high>>guestmem.PageShift + page) {
			t.Errorf("page %d above the hole is not dirty", page)
		}
	}
	if n := dirty.Count(); n > 3+8 { // and page tables, whose accessed bits the processor sets
		t.Errorf("%d pages are dirty", n)
	}
	thaw(t, m)
}

func TestDirtyLogThatIsOffIsAnError(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 1))
	dirty := guestmem.NewBitmap(m.memory.Frames())
	if err := m.CollectDirty(dirty); !errors.Is(err, kvm.ErrNotLogged) {
		t.Errorf("CollectDirty before StartDirtyLog: %v", err)
	}
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	if err := m.CollectDirty(guestmem.NewBitmap(64)); err == nil {
		t.Error("a bitmap of another memory was taken")
	}
	for range 2 {
		if err := m.StopDirtyLog(); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.CollectDirty(dirty); !errors.Is(err, kvm.ErrNotLogged) {
		t.Errorf("CollectDirty after StopDirtyLog: %v", err)
	}
}

// take returns the pages reported since the last call.
func (p *testPorts) take() map[uint32]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.written
	p.written = map[uint32]bool{}
	return taken
}

func freeze(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
}

func thaw(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Thaw(); err != nil {
		t.Fatal(err)
	}
}

func collect(t testing.TB, m *Machine, dst *guestmem.Bitmap) {
	t.Helper()
	if err := m.CollectDirty(dst); err != nil {
		t.Fatal(err)
	}
}

func copyPages(t testing.TB, dst, src *guestmem.Memory, pages *guestmem.Bitmap) {
	t.Helper()
	for first, n := pages.NextRun(0); n > 0; first, n = pages.NextRun(first + n) {
		p, err := src.Slice(first<<guestmem.PageShift, n<<guestmem.PageShift)
		if err != nil {
			t.Fatal(err)
		}
		if err := dst.WriteAt(p, first<<guestmem.PageShift); err != nil {
			t.Fatal(err)
		}
	}
}

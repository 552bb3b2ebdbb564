package pci

import (
	"encoding/binary"

	"github.com/pollux-ha/pollux/devices/state"
)

// Saved is a function's state, read and checked but not yet in force.
type Saved struct {
	space [spaceSize]byte
	msix  []vector
	pba   []uint64
}

// Save appends the configuration space and the MSI-X table. It is part of the device's own section.
func (f *Function) Save(e *state.Encoder) {
	f.mu.Lock()
	e.Raw(f.space[:])
	f.mu.Unlock()
	if f.msix != nil {
		f.msix.save(e)
	}
}

// Decode reads what Save wrote, and checks that it can be the state of this function: all that a guest cannot write has
// to be as it is here. What is wrong is an error of d; the result may be used when d has none.
func (f *Function) Decode(d *state.Decoder) *Saved {
	s := &Saved{}
	d.Raw(s.space[:])
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range s.space {
		if (s.space[i]^f.space[i])&^f.mask[i] != 0 {
			_ = d.Failf("configuration space differs at %#x: %#02x, this machine has %#02x (mask %#02x)",
				i, s.space[i], f.space[i], f.mask[i])
			return s
		}
	}
	if f.msix != nil {
		f.msix.decode(d, s)
	}
	return s
}

// Restore puts a decoded state in force. BARs answer where it says.
func (f *Function) Restore(s *Saved) {
	f.mu.Lock()
	f.space = s.space
	f.command.Store(uint32(binary.LittleEndian.Uint16(f.space[regCommand:])))
	f.mu.Unlock()
	if f.msix != nil {
		f.msix.restore(s)
	}
	if f.root != nil {
		f.root.remap()
	}
}

package pci

import "github.com/pollux-ha/pollux/devices/state"

// save appends the table and the pending bits. Enable and mask-all are in the configuration space.
func (m *MSIX) save(e *state.Encoder) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.U16(uint16(len(m.vectors)))
	for i := range m.vectors {
		v := &m.vectors[i]
		e.U64(v.address)
		e.U32(v.data)
		e.Bool(v.masked)
	}
	for _, w := range m.pending {
		e.U64(w)
	}
}

func (m *MSIX) decode(d *state.Decoder, s *Saved) {
	if n := int(d.U16()); d.Err() == nil && n != len(m.vectors) {
		_ = d.Failf("%d MSI-X vectors, this machine has %d", n, len(m.vectors)) // sticks in d
		return
	}
	s.msix = make([]vector, len(m.vectors))
	for i := range s.msix {
		s.msix[i] = vector{address: d.U64(), data: d.U32(), masked: d.Bool()}
		if s.msix[i].address&3 != 0 {
			_ = d.Failf("MSI-X vector %d: address %#x is not aligned", i, s.msix[i].address)
		}
	}
	s.pba = make([]uint64, len(m.pending))
	for i := range s.pba {
		s.pba[i] = d.U64()
	}
	if tail := len(m.vectors) % 64; tail != 0 && s.pba[len(s.pba)-1]>>tail != 0 {
		_ = d.Failf("MSI-X pending bits beyond the last vector: %#x", s.pba[len(s.pba)-1])
	}
}

// restore takes over a decoded state. Nothing is sent: the device flushes when it is thawed.
func (m *MSIX) restore(s *Saved) {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.vectors, s.msix)
	copy(m.pending, s.pba)
	m.adopt()
}

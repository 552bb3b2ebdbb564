package pci

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"

	"github.com/pollux-ha/pollux/devices"
)

// MSI-X capability and table (PCI §6.8.2).
const (
	msixControlAt  = 2 // offset of Message Control in the capability
	msixMaskAll    = 1 << 14
	msixEnable     = 1 << 15
	msixMaxVectors = 2048

	// TableEntrySize is the size of one vector's entry in the MSI-X table, in bytes.
	TableEntrySize = 16
	entryMasked    = 1 << 0 // in Vector Control; the other bits are reserved
)

// vector is one entry of the MSI-X table.
type vector struct {
	address uint64
	data    uint32
	masked  bool
}

// MSIX is a function's message-signalled interrupts: the table and the pending bits that the guest reads and writes
// behind a BAR, and the signals that the device raises.
type MSIX struct {
	function *Function
	at       int // of the capability
	sender   devices.MSISender

	mu       sync.Mutex // held while a message is sent, so that messages, masking and pending bits have one order
	vectors  []vector
	pending  []uint64
	enabled  bool // MSI-X Enable
	sendable bool // enabled, not masked as a whole, and bus master: messages may go out
}

// AddMSIX gives the function an MSI-X capability with the given number of vectors, whose table and pending bit array lie
// at the given offsets (multiples of 8) of a BAR. The region behind that BAR forwards accesses there to the MSIX.
func (f *Function) AddMSIX(barIndex int, table, pba uint32, vectors int, sender devices.MSISender) (*MSIX, error) {
	if vectors < 1 || vectors > msixMaxVectors || table%8 != 0 || pba%8 != 0 {
		return nil, fmt.Errorf("%s: MSI-X with %d vectors, table at %#x, pending bits at %#x cannot be",
			f.name, vectors, table, pba)
	}
	var body, mask [10]byte
	le := binary.LittleEndian
	le.PutUint16(body[0:], uint16(vectors-1))
	le.PutUint32(body[2:], table|uint32(barIndex))
	le.PutUint32(body[6:], pba|uint32(barIndex))
	le.PutUint16(mask[0:], msixEnable|msixMaskAll)
	at, err := f.AddCapability(CapMSIX, body[:], mask[:])
	if err != nil {
		return nil, err
	}
	m := &MSIX{
		function: f, at: at, sender: sender,
		vectors: make([]vector, vectors),
		pending: make([]uint64, (vectors+63)/64),
	}
	for i := range m.vectors {
		m.vectors[i].masked = true // the state after reset (PCI §6.8.2.9)
	}
	f.msix = m
	return m, nil
}

// Vectors is the number of vectors.
func (m *MSIX) Vectors() int { return len(m.vectors) }

// Enabled reports whether the guest has switched MSI-X on.
func (m *MSIX) Enabled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enabled
}

// Signal raises a vector: the message goes out, or, when it is masked, its pending bit remembers it (PCI §6.8.2.5). A vector
// that does not exist, and any while MSI-X is off, is not signalled.
func (m *MSIX) Signal(v uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if int(v) >= len(m.vectors) || !m.enabled {
		return
	}
	if e := &m.vectors[v]; m.sendable && !e.masked {
		m.sender.SignalMSI(e.address, e.data)
		return
	}
	m.pending[v/64] |= 1 << (v % 64)
}

// Flush sends what is pending and not masked. Nothing is, in the running machine: it is for the first moment after a load.
func (m *MSIX) Flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flush()
}

func (m *MSIX) flush() {
	if !m.sendable {
		return
	}
	for w := range m.pending {
		for set := m.pending[w]; set != 0; set &= set - 1 {
			v := w*64 + bits.TrailingZeros64(set)
			if e := &m.vectors[v]; !e.masked {
				m.pending[w] &^= 1 << (v % 64)
				m.sender.SignalMSI(e.address, e.data)
			}
		}
	}
}

// configure takes over Message Control and the command register after they were written.
func (m *MSIX) configure() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.adopt()
	if !m.enabled {
		clear(m.pending) // what was raised for a former use must not surprise the next one
	}
	m.flush()
}

// adopt reads the registers while m.mu is held, so that of two writers the later one's value wins.
func (m *MSIX) adopt() {
	control := m.function.Field(m.at+msixControlAt, 2)
	m.enabled = control&msixEnable != 0
	m.sendable = m.enabled && control&msixMaskAll == 0 && m.function.BusMaster()
}

// ReadTable is a guest's read at an offset into the table. Only aligned reads of 4 or 8 bytes have a defined result
// (PCI §6.8.2); others give ones.
func (m *MSIX) ReadTable(offset uint64, p []byte) {
	if !m.tableAccess(offset, p) {
		fill(p)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var entry [TableEntrySize]byte
	e := &m.vectors[offset/TableEntrySize]
	binary.LittleEndian.PutUint64(entry[0:], e.address)
	binary.LittleEndian.PutUint32(entry[8:], e.data)
	if e.masked {
		entry[12] = entryMasked
	}
	copy(p, entry[offset%TableEntrySize:])
}

// WriteTable is a guest's write at an offset into the table. Other than aligned writes of 4 or 8 bytes are ignored.
func (m *MSIX) WriteTable(offset uint64, p []byte) {
	if !m.tableAccess(offset, p) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := &m.vectors[offset/TableEntrySize]
	for i := 0; i < len(p); i += 4 {
		v := binary.LittleEndian.Uint32(p[i:])
		switch (offset + uint64(i)) % TableEntrySize {
		case 0:
			e.address = e.address&^0xffffffff | uint64(v&^3)
		case 4:
			e.address = e.address&0xffffffff | uint64(v)<<32
		case 8:
			e.data = v
		case 12:
			e.masked = v&entryMasked != 0
		}
	}
	m.flush()
}

// ReadPBA is a guest's read at an offset into the pending bit array. Writes there do nothing (PCI §6.8.2.10).
func (m *MSIX) ReadPBA(offset uint64, p []byte) {
	if (len(p) != 4 && len(p) != 8) || offset%uint64(len(p)) != 0 || offset/8 >= uint64(len(m.pending)) {
		fill(p)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var word [8]byte
	binary.LittleEndian.PutUint64(word[:], m.pending[offset/8])
	copy(p, word[offset%8:])
}

func (m *MSIX) tableAccess(offset uint64, p []byte) bool {
	return (len(p) == 4 || len(p) == 8) && offset%uint64(len(p)) == 0 &&
		offset/TableEntrySize < uint64(len(m.vectors))
}

func fill(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

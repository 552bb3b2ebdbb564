package vmm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// ErrMismatch is wrapped by errors about a machine that cannot take over another one's state; they say which property
// differs.
var ErrMismatch = errors.New("the machines don't match")

const (
	descriptionVersion = 1

	// maxDescription bounds a description that a peer or a file gives: CPUID and some hundred devices are far less.
	maxDescription = 64 << 10
	maxDevices     = 1024
)

// Description is what two machines must have in common for one to take over the other's state.
type Description struct {
	MemoryBytes uint64
	CPUs        int
	Devices     []string // names, in the order of their state
	Baseline    Baseline // what the guest sees of the CPU
}

// Description is this machine's, encoded for a peer or a file; ParseDescription reads it. The caller must not change it.
func (m *Machine) Description() []byte { return m.description }

// Baseline is the CPU that the guest sees. The caller must not change it.
func (m *Machine) Baseline() Baseline { return m.cpuid }

// describe fixes the description once the devices exist.
func (m *Machine) describe() {
	d := Description{MemoryBytes: m.memory.Size(), CPUs: len(m.vcpus), Baseline: m.cpuid}
	for _, device := range m.devices {
		d.Devices = append(d.Devices, device.Name())
	}
	m.description = d.encode()
	m.fingerprint = sha256.Sum256(m.description)
}

func (d *Description) encode() []byte {
	var e state.Encoder
	section := e.Begin("description", descriptionVersion)
	e.U64(d.MemoryBytes)
	e.U32(uint32(d.CPUs))
	e.U32(uint32(len(d.Devices)))
	for _, name := range d.Devices {
		e.String(name)
	}
	e.U32(uint32(len(d.Baseline)))
	for _, c := range d.Baseline {
		for _, v := range [...]uint32{c.Function, c.Index, c.Flags, c.Eax, c.Ebx, c.Ecx, c.Edx} {
			e.U32(v)
		}
	}
	e.End(section)
	return e.Bytes()
}

// ParseDescription reads what Machine.Description wrote. The bytes may come from anywhere.
func ParseDescription(b []byte) (Description, error) {
	outer := state.NewDecoder(b)
	_, d := outer.Section("description", descriptionVersion)
	if err := outer.Finish(); err != nil {
		return Description{}, fmt.Errorf("parse machine description: %w", err)
	}
	var p Description
	p.MemoryBytes = d.U64()
	p.CPUs = int(d.U32())
	p.Devices = make([]string, 0, min(d.Len(), maxDevices))
	for range boundedCount(d, "devices", maxDevices) {
		p.Devices = append(p.Devices, d.String(255))
	}
	n := boundedCount(d, "CPUID entries", maxCPUIDEntries)
	p.Baseline = make(Baseline, 0, n)
	for range n {
		c := kvm.CPUIDEntry{Function: d.U32(), Index: d.U32(), Flags: d.U32()}
		c.Eax, c.Ebx, c.Ecx, c.Edx = d.U32(), d.U32(), d.U32(), d.U32()
		p.Baseline = append(p.Baseline, c)
	}
	if d.Err() == nil && (p.CPUs < 1 || p.CPUs > maxCPUs) {
		d.Failf("%d CPUs", p.CPUs)
	}
	if d.Err() == nil && (p.MemoryBytes < guestmem.MinSize || p.MemoryBytes > guestmem.MaxSize) {
		d.Failf("%d bytes of memory", p.MemoryBytes)
	}
	if err := d.Finish(); err != nil {
		return Description{}, fmt.Errorf("parse machine description: %w", err)
	}
	return p, nil
}

// boundedCount reads a number of items that follow, 0 if the decoder has failed.
func boundedCount(d *state.Decoder, what string, limit int) int {
	n := d.U32()
	if d.Err() != nil {
		return 0
	}
	if n > uint32(limit) {
		d.Failf("%d %s, at most %d allowed", n, what, limit)
		return 0
	}
	return int(n)
}

// Matches reports, as an error that wraps ErrMismatch and names the property, why a machine with description d can't
// take over the state of one with description other.
func (d *Description) Matches(other Description) error {
	switch {
	case d.MemoryBytes != other.MemoryBytes:
		return fmt.Errorf("%w: %d MiB of memory here, %d MiB there", ErrMismatch, d.MemoryBytes>>20, other.MemoryBytes>>20)
	case d.CPUs != other.CPUs:
		return fmt.Errorf("%w: %d CPUs here, %d there", ErrMismatch, d.CPUs, other.CPUs)
	case !slices.Equal(d.Devices, other.Devices):
		return fmt.Errorf("%w: devices %s here, %s there", ErrMismatch,
			strings.Join(d.Devices, " "), strings.Join(other.Devices, " "))
	case !slices.Equal(d.Baseline, other.Baseline):
		return fmt.Errorf("%w: the guest would see another CPU here (use the other machine's baseline)", ErrMismatch)
	}
	return nil
}

package vmm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/pollux-ha/pollux/devices/guestmem"
)

// A snapshot file is a header and sections, all little endian:
//
//	file    = magic "PLXSNAP\n", version u32, CRC32C u32 of the 12 bytes before; sections
//	section = kind u32, zero u32, length u64, CRC32C u32 of the payload, CRC32C u32 of the 20 bytes before; payload
//
// in this order: one description (Machine.Description), one state (SaveState), any number of pages (guest physical address
// u64, then up to 256 pages; addresses rise; pages that are all zero are left out), one end (number of pages u64, CRC32C
// u32 of all bytes of the file before this section). Nothing follows the end.
const (
	snapshotMagic   = "PLXSNAP\n"
	snapshotVersion = 1

	snapshotHeaderSize = 16
	sectionHeaderSize  = 24

	sectionDescription = 1
	sectionState       = 2
	sectionPages       = 3
	sectionEnd         = 4

	// maxState bounds the state section: a vCPU's is 10 KiB, a device's far less than a MiB.
	maxState      = 64 << 20
	maxRunPages   = 256
	pagesOverhead = 8
	endSize       = 12
)

// ErrSnapshot is wrapped by errors about a file that is no snapshot, or no longer the one that was written.
var ErrSnapshot = errors.New("not a valid snapshot")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Snapshot writes the machine to a file. The machine is frozen for as long as that takes, and goes on after, also on an
// error. The file appears under its name when it is whole and on stable storage; one that was there before is replaced then.
func (m *Machine) Snapshot(path string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("snapshot to %s: %w", path, err)
		}
	}()
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".pollux-snapshot-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := m.snapshotTo(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// snapshotTo freezes the machine and writes the whole file.
func (m *Machine) snapshotTo(w io.Writer) (err error) {
	if err := m.Freeze(); err != nil {
		return err
	}
	defer func() {
		// A machine that ended meanwhile can't be thawed, and its snapshot is good.
		if terr := m.Thaw(); err == nil && !errors.Is(terr, ErrOver) {
			err = terr
		}
	}()
	state, err := m.SaveState(nil)
	if err != nil {
		return err
	}
	s := newSnapshotWriter(w)
	s.section(sectionDescription, m.description)
	s.section(sectionState, state)
	for _, r := range m.memory.Regions() {
		s.region(r)
	}
	return s.finish()
}

// syncDir makes a rename in the directory stable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// snapshotWriter writes sections. Its first error sticks; finish returns it.
type snapshotWriter struct {
	w     *bufio.Writer
	sum   uint32 // of everything written
	pages uint64
	err   error
}

func newSnapshotWriter(w io.Writer) *snapshotWriter {
	s := &snapshotWriter{w: bufio.NewWriterSize(w, 1<<20)}
	header := append([]byte(snapshotMagic), 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(header[len(snapshotMagic):], snapshotVersion)
	s.write(binary.LittleEndian.AppendUint32(header, crc32.Checksum(header, castagnoli)))
	return s
}

func (s *snapshotWriter) write(p []byte) {
	if s.err == nil {
		s.sum = crc32.Update(s.sum, castagnoli, p)
		_, s.err = s.w.Write(p)
	}
}

// section writes one section whose payload is the parts, one after the other.
func (s *snapshotWriter) section(kind uint32, parts ...[]byte) {
	length, sum := uint64(0), uint32(0)
	for _, p := range parts {
		length += uint64(len(p))
		sum = crc32.Update(sum, castagnoli, p)
	}
	var h [sectionHeaderSize]byte
	binary.LittleEndian.PutUint32(h[0:], kind)
	binary.LittleEndian.PutUint64(h[8:], length)
	binary.LittleEndian.PutUint32(h[16:], sum)
	binary.LittleEndian.PutUint32(h[20:], crc32.Checksum(h[:20], castagnoli))
	s.write(h[:])
	for _, p := range parts {
		s.write(p)
	}
}

// region writes the pages of a memory region that are not all zero, in runs.
func (s *snapshotWriter) region(r guestmem.Region) {
	const page = guestmem.PageSize
	var address [pagesOverhead]byte
	for at := 0; at < len(r.Bytes); {
		if isZero(r.Bytes[at : at+page]) {
			at += page
			continue
		}
		end := at + page
		for end < len(r.Bytes) && end-at < maxRunPages*page && !isZero(r.Bytes[end:end+page]) {
			end += page
		}
		binary.LittleEndian.PutUint64(address[:], r.Base+uint64(at))
		s.section(sectionPages, address[:], r.Bytes[at:end])
		s.pages += uint64(end-at) / page
		at = end
	}
}

func (s *snapshotWriter) finish() error {
	var end [endSize]byte
	binary.LittleEndian.PutUint64(end[0:], s.pages)
	binary.LittleEndian.PutUint32(end[8:], s.sum)
	s.section(sectionEnd, end[:])
	if s.err != nil {
		return s.err
	}
	return s.w.Flush()
}

// isZero reports whether a page, whose length is a multiple of 64, holds nothing but zeroes.
func isZero(p []byte) bool {
	for ; len(p) >= 64; p = p[64:] {
		var or uint64
		for i := 0; i < 64; i += 8 {
			or |= binary.LittleEndian.Uint64(p[i:])
		}
		if or != 0 {
			return false
		}
	}
	return true
}

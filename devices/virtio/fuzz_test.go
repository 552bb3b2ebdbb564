package virtio

import (
	"encoding/binary"
	"testing"

	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/devices/virtio/queue"
	"github.com/pollux-ha/pollux/devices/virtio/virtiotest"
)

// boundsDisk is a BlockBackend that checks what it is asked for.
type boundsDisk struct {
	t    testing.TB
	size int64
}

func (d *boundsDisk) check(off, n int64) error {
	if off < 0 || n <= 0 || off%SectorSize != 0 || n%SectorSize != 0 || off+n > d.size {
		d.t.Errorf("%d bytes at %d of a disk of %d", n, off, d.size)
	}
	return nil
}

func (d *boundsDisk) vector(bufs [][]byte, off int64) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	return d.check(off, n)
}

func (d *boundsDisk) ReadVec(bufs [][]byte, off int64) error  { return d.vector(bufs, off) }
func (d *boundsDisk) WriteVec(bufs [][]byte, off int64) error { return d.vector(bufs, off) }
func (d *boundsDisk) Flush() error                            { return nil }
func (d *boundsDisk) Discard(off, n int64) error              { return d.check(off, n) }
func (d *boundsDisk) WriteZeroes(off, n int64, _ bool) error  { return d.check(off, n) }
func (d *boundsDisk) Size() int64                             { return d.size }
func (d *boundsDisk) ReadOnly() bool                          { return false }

// ram is n bytes of guest memory. Guest.Bytes would call a method of testing.F inside of the fuzz target.
func ram(g *virtiotest.Guest, at, n uint64) []byte { return g.Memory.Regions()[0].Bytes[at : at+n] }

// segments cuts n bytes of guest memory from at on into pieces of the given sizes, the last taking the rest.
func segments(g *virtiotest.Guest, at, n uint64, cuts []byte) (s []queue.Segment) {
	for i := 0; n > 0; i++ {
		m := n
		if i < len(cuts) {
			m = min(n, uint64(cuts[i])+1)
		}
		s = append(s, queue.Segment{Addr: at, Data: ram(g, at, m)})
		at, n = at+m, n-m
	}
	return s
}

func addRequestSeeds(f *testing.F) {
	header := func(kind uint32, sector uint64, rest ...byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, kind)
		b = binary.LittleEndian.AppendUint64(append(b, 0, 0, 0, 0), sector)
		return append(b, rest...)
	}
	sectors := func(sector uint64, n, flags uint32) []byte {
		b := binary.LittleEndian.AppendUint64(nil, sector)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, n), flags)
	}
	f.Add(header(0, 3), uint16(513), []byte{15})
	f.Add(header(0, 1<<55), uint16(513), []byte{3, 3})
	f.Add(header(1, 127, make([]byte, 512)...), uint16(1), []byte{15, 255, 255})
	f.Add(header(4, 0), uint16(1), []byte{})
	f.Add(header(8, 0), uint16(21), []byte{})
	f.Add(header(11, 0, sectors(126, 2, 0)...), uint16(1), []byte{15})
	f.Add(header(13, 0, sectors(127, 0xffffffff, 1)...), uint16(1), []byte{20, 3})
}

// FuzzBlkRequest parses and executes arbitrary requests: the backend is asked only for what it has, and the answer lies in the
// request's own buffers.
func FuzzBlkRequest(f *testing.F) {
	addRequestSeeds(f)
	g := virtiotest.NewGuest(f)
	disk := &boundsDisk{t: f, size: 128 * SectorSize}
	b, err := NewBlk("blk0", BlkConfig{Backend: disk}, internalHost(g))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := b.Close(); err != nil {
			f.Error(err)
		}
	})
	const requestAt, answerAt, guard = 0x10000, 0x80000, 0x5a
	f.Fuzz(func(t *testing.T, readable []byte, writable uint16, cuts []byte) {
		if len(readable) < blkHeaderSize || len(readable) > 0x10000 || writable == 0 {
			return // takeBatch has refused it
		}
		disk.t = t
		copy(ram(g, requestAt, uint64(len(readable))), readable)
		around := ram(g, answerAt-16, uint64(writable)+32)
		for i := range around {
			around[i] = guard
		}
		r := &request{chain: queue.Chain{
			Readable: segments(g, requestAt, uint64(len(readable)), cuts), ReadableBytes: uint64(len(readable)),
			Writable: segments(g, answerAt, uint64(writable), cuts), WritableBytes: uint64(writable),
		}}
		if r.parse(b) {
			r.execute(b.backend)
		}
		if r.status != blkStatusOK && r.status != blkStatusIOError && r.status != blkStatusUnsupport {
			t.Errorf("status %d", r.status)
		}
		for i := range 16 {
			if around[i] != guard || around[len(around)-1-i] != guard {
				t.Fatal("memory beside the request's buffers was written")
			}
		}
		if string(ram(g, requestAt, uint64(len(readable)))) != string(readable) {
			t.Error("the request's readable part was written")
		}
	})
}

// FuzzNetTx sends arbitrary frames: what reaches the backend is what its kernel would take.
func FuzzNetTx(f *testing.F) {
	frame := func(header ...byte) []byte { return append(header, make([]byte, 100)...) }
	f.Add(frame(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), uint64(0), []byte{11})
	f.Add(frame(1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0), ^uint64(0), []byte{11, 13})
	f.Add(frame(1, 0x84, 0xff, 0xff, 1, 0, 98, 0, 0, 0, 0, 0), ^uint64(0), []byte{1, 1, 1})
	f.Add(frame(0xff, 5, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), uint64(netCsum|netHostTSO4), []byte{})
	n, d, _ := sinkNet(f)
	n.mu.Lock()
	f.Cleanup(n.mu.Unlock) // runs before the device is closed
	const at = 0x100000
	f.Fuzz(func(t *testing.T, frame []byte, features uint64, cuts []byte) {
		if len(frame) > NetFrameMax+10 {
			return
		}
		n.regs.driverFeatures = features
		defer func() { n.regs.driverFeatures = d.Features }()
		copy(ram(d.Guest, at, uint64(len(frame))), frame)
		n.txChain = queue.Chain{
			Readable: segments(d.Guest, at, uint64(len(frame)), cuts), ReadableBytes: uint64(len(frame)),
		}
		if n.prepareFrame() != nil {
			return
		}
		var sent []byte
		for _, p := range n.txParts {
			if len(p) == 0 {
				t.Fatal("an empty part")
			}
			sent = append(sent, p...)
		}
		if len(sent) != len(frame) || string(sent[NetHeaderSize:]) != string(frame[NetHeaderSize:]) {
			t.Fatal("the frame's contents changed")
		}
		checkHeader(t, sent[:NetHeaderSize], len(sent)-NetHeaderSize, features)
	})
}

// checkHeader checks a header as a tap does (Linux, virtio_net_hdr_to_skb), for the features that were negotiated.
func checkHeader(t *testing.T, h []byte, length int, features uint64) {
	u16 := func(off int) int { return int(binary.LittleEndian.Uint16(h[off:])) }
	csum := h[0] == 1
	if h[0] > 1 || (csum && features&netCsum == 0) || (csum && u16(6)+u16(8)+2 > length) {
		t.Errorf("header %x of a frame of %d bytes: checksum", h, length)
	}
	if u16(2) > length || u16(10) != 0 {
		t.Errorf("header %x of a frame of %d bytes: header length or number of buffers", h, length)
	}
	allowed := map[byte]uint64{0: ^uint64(0), 1: netHostTSO4, 4: netHostTSO6}[h[1]&^0x80]
	switch {
	case features&allowed == 0 && h[1] != 0, h[1]&0x80 != 0 && features&netHostECN == 0, h[1] == 0x80:
		t.Errorf("header %x: segmentation was not negotiated", h)
	case h[1] != 0 && (!csum || u16(4) == 0):
		t.Errorf("header %x: segments of no size, or without a checksum", h)
	}
}

func save(n *Net) []byte {
	var e state.Encoder
	n.Save(&e)
	return e.Bytes()
}

func load(n *Net, b []byte) error { return n.Load(state.NewDecoder(b)) }

// FuzzTransport makes arbitrary accesses to a device's registers and configuration space: nothing panics or hangs, and
// the state that it leads to can be saved and loaded.
func FuzzTransport(f *testing.F) {
	f.Add([]byte{0, 20, 0, 0, 0, 20, 0, 1, 1, 12, 2, 1})
	f.Add([]byte{2, 4, 1, 6, 2, 0x10, 2, 0xff, 1, 20, 0, 3, 1, 8, 2, 1, 1, 12, 2, 1, 1, 20, 0, 11, 1, 28, 1, 1, 1, 20, 0, 15})
	f.Add([]byte{2, 0x84, 0, 0, 2, 0x88, 2, 20, 2, 0x8c, 0, 1, 3, 0x90, 0, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 400 {
			return
		}
		n, d, _ := sinkNet(t)
		for ; len(program) >= 4; program = program[4:] {
			access(d, program[0], program[1], program[2], program[3])
		}
		n.Freeze()
		saved := save(n)
		g := virtiotest.NewGuest(t)
		twin, err := NewNet("net0", NetConfig{MAC: n.mac, Backend: &sink{closed: make(chan struct{})}}, internalHost(g))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = twin.Close() }()
		g.Attach(1, twin.Function())
		if err := load(twin, saved); err != nil {
			t.Fatalf("a state that a driver brought about is refused: %v", err)
		}
		if again := save(twin); string(again) != string(saved) {
			t.Fatalf("the state changed by loading and saving:\n%x\n%x", saved, again)
		}
		twin.Thaw()
		twin.Freeze()
		n.Thaw()
	})
}

// access makes one access of a guest: to the BAR, or to the configuration space.
func access(d *virtiotest.Driver, op, at, width, value byte) {
	n := 1 << (width & 3)
	v := uint64(value) * 0x0101010101010101
	if value < 0x80 {
		v = uint64(value)
	}
	p := binary.LittleEndian.AppendUint64(nil, v)[:n]
	// Eight pages of registers; the upper bits of op choose one, those of width an address near the page's end.
	address := d.Common&^0x7fff + uint64(op>>2&7)*0x1000 + uint64(at) + uint64(width>>7)*0xf00
	offset := int(at) &^ 3
	switch op & 3 {
	case 0:
		d.MMIO.Read(address, p)
	case 1:
		d.MMIO.Write(address, p)
	case 2:
		d.ConfigWrite(1, offset, min(n, 4), uint32(v))
	case 3:
		d.ConfigRead(1, offset, min(n, 4))
	}
}

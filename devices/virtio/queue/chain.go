package queue

import (
	"encoding/binary"
	"fmt"
)

// Read reads the chain that starts at descriptor head into c. Next does so for new chains; a device does it again for those
// that it had taken before it was saved.
func (q *Queue) Read(c *Chain, head uint16) error {
	c.Head = head
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadableBytes, c.WritableBytes = 0, 0
	if !q.enabled {
		return fmt.Errorf("%w: chain at descriptor %d of a queue that is not enabled", ErrBroken, head)
	}
	table, index, indirect := q.desc, head, false
	limit := int(q.cfg.Size)
	for n := 0; ; n++ {
		if n == limit {
			return fmt.Errorf("%w: chain at descriptor %d loops", ErrBroken, head)
		}
		if int(index) >= len(table)/descSize {
			return fmt.Errorf("%w: chain at descriptor %d leads to descriptor %d of %d", ErrBroken, head, index, len(table)/descSize)
		}
		d := readDescriptor(table, index)
		if d.flags&descIndirect != 0 {
			if indirect {
				return fmt.Errorf("%w: chain at descriptor %d: indirect table inside of an indirect table", ErrBroken, head)
			}
			var err error
			if table, err = q.indirectTable(d); err != nil {
				return fmt.Errorf("chain at descriptor %d: %w", head, err)
			}
			// The descriptors before the table count no more: the table has a bound of its own.
			index, indirect, n, limit = 0, true, -1, len(table)/descSize
			continue
		}
		if err := q.addSegment(c, d); err != nil {
			return fmt.Errorf("chain at descriptor %d: %w", head, err)
		}
		if d.flags&descNext == 0 {
			return nil
		}
		index = d.next
	}
}

type descriptor struct {
	addr        uint64
	length      uint32
	flags, next uint16
}

// readDescriptor copies a descriptor, so that what is checked is what is used.
func readDescriptor(table []byte, index uint16) descriptor {
	b := table[int(index)*descSize:][:descSize]
	return descriptor{
		addr:   binary.LittleEndian.Uint64(b),
		length: binary.LittleEndian.Uint32(b[8:]),
		flags:  binary.LittleEndian.Uint16(b[12:]),
		next:   binary.LittleEndian.Uint16(b[14:]),
	}
}

// indirectTable is the table that an indirect descriptor refers to (§2.7.5.3). The descriptor's write flag means nothing
// (§2.7.5.3.2).
func (q *Queue) indirectTable(d descriptor) ([]byte, error) {
	switch {
	case !q.features.Indirect:
		return nil, fmt.Errorf("%w: indirect descriptor without the feature", ErrBroken)
	case d.flags&descNext != 0:
		return nil, fmt.Errorf("%w: indirect descriptor with a next one", ErrBroken)
	case d.length == 0 || d.length%descSize != 0 || d.length > maxIndirect*descSize:
		return nil, fmt.Errorf("%w: indirect table of %d bytes", ErrBroken, d.length)
	}
	table, err := q.mem.Slice(d.addr, uint64(d.length))
	if err != nil {
		return nil, fmt.Errorf("%w: indirect table: %w", ErrBroken, err)
	}
	return table, nil
}

func (q *Queue) addSegment(c *Chain, d descriptor) error {
	data, err := q.mem.Slice(d.addr, uint64(d.length))
	if err != nil {
		return fmt.Errorf("%w: buffer: %w", ErrBroken, err)
	}
	if c.ReadableBytes+c.WritableBytes+uint64(d.length) > maxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrBroken, uint64(maxBytes))
	}
	if d.flags&descWrite == 0 && len(c.Writable) > 0 {
		return fmt.Errorf("%w: readable buffer after a writable one", ErrBroken) // §2.7.4.2
	}
	if d.length == 0 {
		return nil
	}
	if d.flags&descWrite == 0 {
		c.Readable = append(c.Readable, Segment{Addr: d.addr, Data: data})
		c.ReadableBytes += uint64(d.length)
	} else {
		c.Writable = append(c.Writable, Segment{Addr: d.addr, Data: data})
		c.WritableBytes += uint64(d.length)
	}
	return nil
}

// ReadAt copies the chain's readable bytes from offset off on to p, and returns how many there were.
func (c *Chain) ReadAt(p []byte, off uint64) int {
	n := 0
	for _, s := range c.Readable {
		if off >= uint64(len(s.Data)) {
			off -= uint64(len(s.Data))
			continue
		}
		n += copy(p[n:], s.Data[off:])
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

// WriteAt copies p to the chain's writable bytes from offset off on, marks them dirty, and returns how many had room.
func (q *Queue) WriteAt(c *Chain, p []byte, off uint64) int {
	n := 0
	for _, s := range c.Writable {
		if off >= uint64(len(s.Data)) {
			off -= uint64(len(s.Data))
			continue
		}
		m := copy(s.Data[off:], p[n:])
		q.mem.MarkDirty(s.Addr+off, uint64(m))
		n += m
		off = 0
		if n == len(p) {
			break
		}
	}
	return n
}

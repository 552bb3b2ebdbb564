package wire

import (
	"fmt"
	"hash/crc32"
	"io"
)

// Reader reads frames. It is not safe for use by several goroutines. After an error the stream is lost and the
// connection must be dropped.
type Reader struct {
	r io.Reader

	head [HeaderSize]byte
	next Header
	crc  uint32 // of the last whole frame
	busy bool   // a payload is due
}

// NewReader returns a Reader on r. Reads of a header are small: r should be buffered.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next reads and checks the next frame's header. The payload must be taken with Payload before the next call. An end of
// the stream between two frames is io.EOF; inside of one it is io.ErrUnexpectedEOF.
func (r *Reader) Next() (Header, error) {
	if r.busy {
		return Header{}, fmt.Errorf("%w: the payload of %v was not read", ErrFrame, r.next.Type)
	}
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		if err == io.EOF {
			return Header{}, err
		}
		return Header{}, fmt.Errorf("read a frame's header: %w", err)
	}
	h, err := parseHeader(r.head[:])
	if err != nil {
		return Header{}, err
	}
	r.next, r.busy = h, true
	return h, nil
}

// Payload reads the payload of the frame that Next announced into p, whose length must be the header's, and checks it.
// On an error the content of p means nothing.
func (r *Reader) Payload(p []byte) error {
	if !r.busy || len(p) != int(r.next.Length) {
		return fmt.Errorf("%w: payload of %d bytes read into %d", ErrFrame, r.next.Length, len(p))
	}
	if _, err := io.ReadFull(r.r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read a %v frame of %d bytes: %w", r.next.Type, r.next.Length, err)
	}
	crc := crc32.Update(0, castagnoli, r.head[:])
	return r.check(crc32.Update(crc, castagnoli, p))
}

func (r *Reader) check(crc uint32) error {
	if crc != r.next.crc {
		return fmt.Errorf("%v frame of %d bytes in epoch %d: %w", r.next.Type, r.next.Length, r.next.Epoch, ErrChecksum)
	}
	r.crc, r.busy = crc, false
	return nil
}

// Skip reads the payload of the frame that Next announced into nowhere, through buf, and checks it.
func (r *Reader) Skip(buf []byte) error {
	crc := crc32.Update(0, castagnoli, r.head[:])
	for left := int(r.next.Length); left > 0; {
		p := buf[:min(left, len(buf))]
		if _, err := io.ReadFull(r.r, p); err != nil {
			return fmt.Errorf("skip a %v frame of %d bytes: %w", r.next.Type, r.next.Length, err)
		}
		crc = crc32.Update(crc, castagnoli, p)
		left -= len(p)
	}
	return r.check(crc)
}

// Checksum is that of the frame that Payload read last.
func (r *Reader) Checksum() uint32 { return r.crc }

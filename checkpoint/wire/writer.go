package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// Writer writes frames. It is not safe for use by several goroutines. After an error the stream is broken: a part of a frame
// may have been written, and the connection must be dropped.
type Writer struct {
	w io.Writer

	// head holds the header and the small fields of a message: one buffer, so that nothing escapes per frame.
	head [HeaderSize + smallPayload]byte
	crc  uint32 // of the last frame
	// digest runs over the checksums of the current epoch's frames; see addDigest.
	digest uint32
	// Session goes into the header of every frame that belongs to an epoch.
	Session uint64
}

// smallPayload is the room for the fixed part of any message.
const smallPayload = 64

// NewWriter returns a Writer on w. Several small writes reach w per frame: w should gather them.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Digest is that of the current epoch's frames so far: what EpochEnd will send.
func (w *Writer) Digest() uint32 { return w.digest }

// frame writes one frame. Its payload is the first small bytes of head after the header, then parts.
func (w *Writer) frame(t Type, epoch uint64, small int, parts ...[]byte) error {
	length := small
	for _, p := range parts {
		length += len(p)
	}
	if bound := payloadBounds[t]; length < int(bound.min) || length > int(bound.max) {
		return fmt.Errorf("send %v: %w: %d bytes, must be %d to %d", t, ErrFrame, length, bound.min, bound.max)
	}
	h := Header{Type: t, Length: uint32(length), Epoch: epoch}
	if t.ofEpoch() {
		h.Session = w.Session
	}
	head := w.head[:HeaderSize+small]
	h.put(head)
	crc := crc32.Update(0, castagnoli, head)
	for _, p := range parts {
		crc = crc32.Update(crc, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(head[crcOffset:], crc)
	w.crc = crc
	if _, err := w.w.Write(head); err != nil {
		return fmt.Errorf("send %v: %w", t, err)
	}
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if _, err := w.w.Write(p); err != nil {
			return fmt.Errorf("send %v: %w", t, err)
		}
	}
	return nil
}

// addDigest folds the checksum of one more frame into the digest of an epoch. A digest over the frames' checksums says as
// much about the whole as one over all bytes, without reading them twice.
func addDigest(digest, crc uint32) uint32 {
	digest = digest<<1 | digest>>31
	return (digest ^ crc) * 0x9e3779b1
}

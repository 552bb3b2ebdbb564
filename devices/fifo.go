package devices

import "github.com/pollux-ha/pollux/devices/state"

// fifo is a bounded first-in first-out queue of bytes. It allocates only when it is made.
type fifo struct {
	buf   []byte
	first int // index of the oldest byte
	n     int // bytes held, at most len(buf)
}

func newFIFO(depth int) fifo { return fifo{buf: make([]byte, depth)} }

// push appends v; false means that there is no room.
func (f *fifo) push(v byte) bool {
	if f.n == len(f.buf) {
		return false
	}
	f.buf[(f.first+f.n)%len(f.buf)] = v
	f.n++
	return true
}

// pop takes the oldest byte; false means that there is none.
func (f *fifo) pop() (byte, bool) {
	if f.n == 0 {
		return 0, false
	}
	v := f.buf[f.first]
	f.drop(1)
	return v, true
}

// head is the oldest bytes as far as they lie together: not empty unless the queue is.
func (f *fifo) head() []byte {
	return f.buf[f.first:min(f.first+f.n, len(f.buf))]
}

// drop forgets the oldest n bytes, of which head gave at least as many.
func (f *fifo) drop(n int) {
	f.first = (f.first + n) % len(f.buf)
	f.n -= n
}

func (f *fifo) clear() { f.first, f.n = 0, 0 }

// save writes the content as a Blob, oldest byte first: where it lay in the buffer does not matter.
func (f *fifo) save(e *state.Encoder) {
	e.U32(uint32(f.n))
	head := f.head()
	e.Raw(head)
	e.Raw(f.buf[:f.n-len(head)])
}

// set replaces the content by p, which fits.
func (f *fifo) set(p []byte) {
	f.first = 0
	f.n = copy(f.buf, p)
}

package guestmem

import "math/bits"

// Bitmap is a set of guest frames, one bit per frame number (guest physical address >> PageShift). It is not safe for
// use by several goroutines.
type Bitmap struct {
	words []uint64
}

// NewBitmap returns an empty set for a memory with the given number of frames (Memory.Frames).
func NewBitmap(frames uint64) *Bitmap {
	return &Bitmap{words: make([]uint64, (frames+63)/64)}
}

// Words is the set itself: frame n is bit n%64 of word n/64. KVM's dirty log for a region is or-ed in from word
// region.Base>>PageShift/64 on.
func (b *Bitmap) Words() []uint64 { return b.words }

// Set adds a frame, which must be below the number of frames.
func (b *Bitmap) Set(gfn uint64) { b.words[gfn/64] |= 1 << (gfn % 64) }

// Has reports whether the frame is in the set; one beyond the number of frames is not.
func (b *Bitmap) Has(gfn uint64) bool {
	return gfn/64 < uint64(len(b.words)) && b.words[gfn/64]&(1<<(gfn%64)) != 0
}

// Clear empties the set.
func (b *Bitmap) Clear() { clear(b.words) }

// Count is the number of frames in the set.
func (b *Bitmap) Count() int {
	n := 0
	for _, w := range b.words {
		if w != 0 {
			n += bits.OnesCount64(w)
		}
	}
	return n
}

// NextRun finds the first run of consecutive frames in the set that begins at or after from. It returns the first frame and
// the number of frames; 0 frames means that there is none. To visit all: from = 0, then first+n.
func (b *Bitmap) NextRun(from uint64) (first, n uint64) {
	first, ok := b.next(from, 0)
	if !ok {
		return 0, 0
	}
	end, ok := b.next(first, ^uint64(0))
	if !ok {
		end = uint64(len(b.words)) * 64
	}
	return first, end - first
}

// next finds the first frame at or after from whose bit, after flipping the words with flip, is set.
func (b *Bitmap) next(from, flip uint64) (uint64, bool) {
	i := from / 64
	if i >= uint64(len(b.words)) {
		return 0, false
	}
	w := (b.words[i] ^ flip) &^ (1<<(from%64) - 1)
	for w == 0 {
		if i++; i == uint64(len(b.words)) {
			return 0, false
		}
		w = b.words[i] ^ flip
	}
	return i*64 + uint64(bits.TrailingZeros64(w)), true
}

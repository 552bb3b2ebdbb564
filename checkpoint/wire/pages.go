package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Codec says how a run's pages are encoded.
type Codec uint8

// The codecs. Zero is invalid.
const (
	CodecRaw  Codec = 1 // the pages as they are
	CodecZero Codec = 2 // pages of zeros, no data
)

// CodecsRequired is the set that every peer must know.
const CodecsRequired uint32 = 1<<CodecRaw | 1<<CodecZero

// The payload of a Pages frame:
//
//	0  u32  number of runs
//	4  u32  zero
//	8  runs: u64 first frame number | u32 pages | u32 bytes of data | u8 codec | 7 zero
//	…  data of all runs, back to back
const (
	pagesHeadSize = 8
	runSize       = 24
)

// Run is a run of consecutive guest frames in a Pages frame.
type Run struct {
	First uint64 // guest frame number
	Count uint32
	Codec Codec
	Data  []byte // encoded; aliases the payload
}

// PageWriter gathers the pages of one epoch into frames. It keeps references to what it is given until Flush.
type PageWriter struct {
	w     *Writer
	epoch uint64

	table []byte // head and runs of the frame being gathered
	runs  int
	data  [][]byte
	bytes int
	last  Codec
	end   uint64 // frame number after the last one added

	// Pages and Zero count what was added since Begin.
	Pages, Zero uint64
}

// NewPageWriter returns a PageWriter that sends through w.
func NewPageWriter(w *Writer) *PageWriter {
	return &PageWriter{
		w:     w,
		table: make([]byte, pagesHeadSize, pagesHeadSize+MaxRuns*runSize),
		// The first part of a frame is its table.
		data: make([][]byte, 1, 1+MaxRuns),
	}
}

// Begin starts the pages of epoch n.
func (p *PageWriter) Begin(n uint64) {
	p.epoch, p.end, p.Pages, p.Zero = n, 0, 0, 0
	p.reset()
}

func (p *PageWriter) reset() {
	p.table = p.table[:pagesHeadSize]
	clear(p.data) // don't hold on to staging
	p.data = p.data[:1]
	p.runs, p.bytes, p.last = 0, 0, 0
}

// zeroPage is what a page without content is compared with.
var zeroPage [PageSize]byte

// Add appends the pages in data, whose first has frame number first; data is a whole number of pages. Frame numbers ascend from
// call to call. Pages of zeros are found here. The data must stay unchanged until Flush.
func (p *PageWriter) Add(first uint64, data []byte) error {
	if len(data)%PageSize != 0 || first < p.end {
		return fmt.Errorf("%w: %d bytes of pages at frame %d after frame %d", ErrMessage, len(data), first, p.end)
	}
	for len(data) > 0 {
		n, codec := sameCodec(data)
		if codec == CodecRaw {
			// A raw run must fit what is left of the frame.
			room := (MaxPagesData - p.bytes) / PageSize
			if room == 0 {
				if err := p.Flush(); err != nil {
					return err
				}
				continue
			}
			n = min(n, room)
		}
		if err := p.add(first, uint32(n), codec, data[:n*PageSize]); err != nil {
			return err
		}
		first += uint64(n)
		data = data[n*PageSize:]
	}
	return nil
}

// sameCodec counts the pages at the start of data that are encoded alike.
func sameCodec(data []byte) (int, Codec) {
	zero := bytes.Equal(data[:PageSize], zeroPage[:])
	n := 1
	for n*PageSize < len(data) && bytes.Equal(data[n*PageSize:(n+1)*PageSize], zeroPage[:]) == zero {
		n++
	}
	if zero {
		return n, CodecZero
	}
	return n, CodecRaw
}

func (p *PageWriter) add(first uint64, count uint32, codec Codec, data []byte) error {
	if codec == CodecZero {
		data = nil
		p.Zero += uint64(count)
	}
	p.Pages += uint64(count)
	if p.runs > 0 && first == p.end && codec == p.last {
		// Goes on where the last run ended: lengthen that one.
		run := p.table[len(p.table)-runSize:]
		binary.LittleEndian.PutUint32(run[8:], binary.LittleEndian.Uint32(run[8:])+count)
		binary.LittleEndian.PutUint32(run[12:], binary.LittleEndian.Uint32(run[12:])+uint32(len(data)))
	} else {
		if p.runs == MaxRuns {
			if err := p.Flush(); err != nil {
				return err
			}
		}
		p.table = binary.LittleEndian.AppendUint64(p.table, first)
		p.table = binary.LittleEndian.AppendUint32(p.table, count)
		p.table = binary.LittleEndian.AppendUint32(p.table, uint32(len(data)))
		p.table = binary.LittleEndian.AppendUint64(p.table, uint64(codec))
		p.runs++
	}
	if len(data) > 0 {
		p.data = append(p.data, data)
		p.bytes += len(data)
	}
	p.last, p.end = codec, first+uint64(count)
	return nil
}

// Flush sends what was gathered, if anything.
func (p *PageWriter) Flush() error {
	if p.runs == 0 {
		return nil
	}
	binary.LittleEndian.PutUint32(p.table[0:], uint32(p.runs))
	binary.LittleEndian.PutUint32(p.table[4:], 0)
	p.data[0] = p.table
	err := p.w.frame(TypePages, p.epoch, 0, p.data...)
	p.w.digest = addDigest(p.w.digest, p.w.crc)
	p.reset()
	return err
}

// Pages is the parsed payload of a TypePages frame.
type Pages struct {
	table []byte
	data  []byte
}

// ParsePages checks the payload of a TypePages frame. The result aliases it. Frame numbers ascend within it; whether they exist
// in the guest's memory is for the caller to check.
func ParsePages(p []byte) (Pages, error) {
	if len(p) < pagesHeadSize+runSize {
		return Pages{}, fmt.Errorf("%w: pages of %d bytes", ErrMessage, len(p))
	}
	runs := binary.LittleEndian.Uint32(p[0:])
	if runs == 0 || runs > MaxRuns || binary.LittleEndian.Uint32(p[4:]) != 0 || len(p) < pagesHeadSize+int(runs)*runSize {
		return Pages{}, fmt.Errorf("%w: %d bytes of pages in %d runs", ErrMessage, len(p), runs)
	}
	tableEnd := pagesHeadSize + int(runs)*runSize
	pages := Pages{table: p[pagesHeadSize:tableEnd], data: p[tableEnd:]}
	end, bytes := uint64(0), uint64(0)
	for i := range int(runs) {
		first, count, length, codec := pages.entry(i)
		want := uint64(0)
		switch codec {
		case uint64(CodecRaw):
			want = uint64(count) * PageSize
		case uint64(CodecZero):
		default:
			return Pages{}, fmt.Errorf("%w: run at frame %d has unknown codec %#x", ErrMessage, first, codec)
		}
		if count == 0 || first < end || first+uint64(count) < first || uint64(length) != want {
			return Pages{}, fmt.Errorf("%w: run of %d pages in %d bytes at frame %d after frame %d", ErrMessage, count, length, first, end)
		}
		end, bytes = first+uint64(count), bytes+want
	}
	if bytes != uint64(len(pages.data)) {
		return Pages{}, fmt.Errorf("%w: runs hold %d bytes, %d follow", ErrMessage, bytes, len(pages.data))
	}
	return pages, nil
}

func (p Pages) entry(i int) (first uint64, count, length uint32, codec uint64) {
	e := p.table[i*runSize : (i+1)*runSize]
	return binary.LittleEndian.Uint64(e), binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:]),
		binary.LittleEndian.Uint64(e[16:])
}

// Runs yields the runs in order. It can be used once or many times.
func (p Pages) Runs(yield func(Run) bool) {
	at := 0
	for i := range len(p.table) / runSize {
		first, count, length, codec := p.entry(i)
		r := Run{First: first, Count: count, Codec: Codec(codec), Data: p.data[at : at+int(length) : at+int(length)]}
		at += int(length)
		if !yield(r) {
			return
		}
	}
}

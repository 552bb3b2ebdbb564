package state

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func sample(e *Encoder) {
	s := e.Begin("uart", 3)
	e.U8(1)
	e.U16(0x2345)
	e.U32(0x6789abcd)
	e.U64(1 << 63)
	e.I64(-7)
	e.Bool(true)
	e.Raw([]byte{9, 8, 7})
	e.Blob([]byte("blob"))
	e.String("text")
	inner := e.Begin("inner", 1)
	e.U8(42)
	e.End(inner)
	e.End(s)
}

func readSample(b []byte) error {
	d := NewDecoder(b)
	v, s := d.Section("uart", 3)
	ok := v == 3 && s.U8() == 1 && s.U16() == 0x2345 && s.U32() == 0x6789abcd && s.U64() == 1<<63 && s.I64() == -7 && s.Bool()
	var raw [3]byte
	s.Raw(raw[:])
	ok = ok && raw == [3]byte{9, 8, 7} && string(s.Blob(4)) == "blob" && s.String(100) == "text"
	_, in := s.Section("inner", 1)
	ok = ok && in.U8() == 42
	if err := errors.Join(in.Finish(), s.Finish(), d.Finish()); err != nil {
		return err
	}
	if !ok {
		return errors.New("values differ")
	}
	return nil
}

func TestRoundTrip(t *testing.T) {
	var e Encoder
	sample(&e)
	if err := readSample(e.Bytes()); err != nil {
		t.Fatal(err)
	}
}

func TestTruncationIsAlwaysSeen(t *testing.T) {
	var e Encoder
	sample(&e)
	for n := range e.Bytes() {
		if err := readSample(e.Bytes()[:n]); !errors.Is(err, ErrTruncated) {
			t.Errorf("cut to %d bytes: %v, want ErrTruncated", n, err)
		}
	}
	if err := readSample(append(bytes.Clone(e.Bytes()), 0)); err == nil {
		t.Error("a trailing byte was not noticed")
	}
}

func TestRefusals(t *testing.T) {
	var e Encoder
	s := e.Begin("rtc", 2)
	e.U8(7)
	e.End(s)
	for _, c := range []struct {
		name string
		read func(*Decoder)
		want string
	}{
		{"other name", func(d *Decoder) { d.Section("uart", 2) }, `"uart" expected at offset 0, found "rtc"`},
		{"newer version", func(d *Decoder) { d.Section("rtc", 1) }, "has version 2"},
		{"bad bool", func(d *Decoder) { d.take(10); d.Bool() }, "7 is not a boolean"},
		{"long blob", func(d *Decoder) { d.Blob(3) }, "at most 3 allowed"},
	} {
		d := NewDecoder(e.Bytes())
		c.read(d)
		if err := d.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
		if d.U64() != 0 || d.Blob(10) != nil {
			t.Errorf("%s: reads after the error gave values", c.name)
		}
	}
}

func TestEncoderDoesNotAllocate(t *testing.T) {
	var e Encoder
	buf := make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() { e.Reset(buf[:0]); sample(&e) }); n != 0 {
		t.Errorf("%v allocations per state", n)
	}
}

func FuzzDecoder(f *testing.F) {
	var e Encoder
	sample(&e)
	f.Add(e.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readSample(b) // must not panic
		d := NewDecoder(b)
		for d.Err() == nil && d.Len() > 0 {
			_ = d.Blob(1 << 20)
		}
	})
}

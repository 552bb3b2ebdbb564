package register

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func TestLayout(t *testing.T) {
	q := Request{Op: CompareAndSwap, Register: 0x0102, Client: 0x1112131415161718, ID: 0x2122232425262728, Value: 0x3132333435363738, Expect: 0x4142434445464748}
	want := "504c5851" + "03" + "00" + "0102" + "1112131415161718" + "2122232425262728" + "3132333435363738" + "4142434445464748"
	if got := hex.EncodeToString(AppendRequest(nil, q)); got != want {
		t.Errorf("request is\n%s, want\n%s", got, want)
	}
	a := Answer{Op: Write, Status: Mismatch, Register: 0x0102, Client: 0x1112131415161718, ID: 0x2122232425262728, Value: 0x3132333435363738, Sequence: 0x4142434445464748, Boot: 0x5152535455565758}
	want = "504c5841" + "02" + "02" + "0102" + "1112131415161718" + "2122232425262728" + "3132333435363738" + "4142434445464748" + "5152535455565758"
	if got := hex.EncodeToString(AppendAnswer(nil, a)); got != want {
		t.Errorf("answer is\n%s, want\n%s", got, want)
	}
}

func TestParseRefusals(t *testing.T) {
	request := AppendRequest(nil, Request{Op: Read})
	answer := AppendAnswer(nil, Answer{Op: Read, Sequence: 1})
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	tests := []struct {
		name            string
		request, answer []byte
	}{
		{"empty", nil, nil},
		{"short", request[:RequestSize-1], answer[:AnswerSize-1]},
		{"long", append(bytes.Clone(request), 0), append(bytes.Clone(answer), 0)},
		{"each other's magic", change(request, 3, 'A'), change(answer, 3, 'Q')},
		{"reserved byte and unknown status", change(request, 5, 1), change(answer, 5, 3)},
		{"sequence 0", nil, change(answer, 39, 0)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseRequest(tt.request); !errors.Is(err, ErrMalformed) {
				t.Errorf("request: %v", err)
			}
			if _, err := ParseAnswer(tt.answer); !errors.Is(err, ErrMalformed) {
				t.Errorf("answer: %v", err)
			}
		})
	}
}

// What is accepted means one thing only: it encodes to the same bytes again.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendRequest(nil, Request{Op: Write, Register: 255, Client: 1, ID: 2, Value: 3, Expect: 4}))
	f.Add(AppendAnswer(nil, Answer{Op: Read, Status: BadRequest, Register: 1000, Sequence: 1, Boot: 9}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := ParseRequest(b); err == nil && !bytes.Equal(AppendRequest(nil, q), b) {
			t.Errorf("request %x became %+v", b, q)
		} else if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("request: %v", err)
		}
		if a, err := ParseAnswer(b); err == nil && !bytes.Equal(AppendAnswer(nil, a), b) {
			t.Errorf("answer %x became %+v", b, a)
		} else if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("answer: %v", err)
		}
	})
}

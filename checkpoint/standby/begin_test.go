package standby

import (
	"errors"
	"io"
	"testing"

	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// A primary that died in the middle of an epoch, and its successor, which counts its sessions from the beginning as well.
func TestSessionOfTheSameNumber(t *testing.T) {
	r, m := newReceiver(t)
	r.Begin(1)
	torn := newStream(t, 1)
	torn.must(torn.w.EpochBegin(1, wire.EpochBegin{Kind: wire.Checkpoint, State: 1, Pages: 1}))
	if _, err := receive(r, torn.buf.Bytes(), true); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	r.Drop()
	r.Begin(1)
	again := newStream(t, 1).epoch(wire.Checkpoint, 1, "s", page(7))
	if _, err := receive(r, again.buf.Bytes(), true); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := r.TakeOver(1); err != nil || m.at(t, 10) != 7 {
		t.Errorf("take over: %v, page holds %d", err, m.at(t, 10))
	}
}

package e2e

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/pollux-ha/pollux/guests/register"
	"github.com/pollux-ha/pollux/netbuffer"
)

// TestNoUncommittedFrameOnTheWire records everything on the clients' bridge while primaries are killed in mid-traffic, and reads the
// capture. The guest numbers its answers. At a takeover it goes back to a committed epoch, and numbers the answers that it had given
// since anew: had one frame of an uncommitted epoch left before, its number would be on the wire twice. So every number is
// there at most once, and numbers only go up.
func TestNoUncommittedFrameOnTheWire(t *testing.T) {
	p := newPair(t)
	path := filepath.Join(p.dir, "clients.pcap")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := netbuffer.Record(bridgeName, file)
	if err != nil {
		t.Fatal(err)
	}
	p.awaitProtected(p.a, p.b)
	l := p.load()
	const kills = 6
	for i := range kills {
		active, twin := p.a, p.b
		if i%2 == 1 {
			active, twin = p.b, p.a
		}
		p.awaitProtected(active, twin)
		l.awaitAnswers(200)
		active.kill()
		p.await("the takeover", func() bool { return twin.protection().Active })
		l.awaitAnswers(100)
		if i%2 == 0 {
			p.a = p.primary("a")
		} else {
			p.b = p.standby()
		}
	}
	stats := l.end()
	_, dropped, err := recorder.Stop()
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	if dropped > 0 {
		t.Fatalf("the capture misses %d frames", dropped)
	}
	answers, skipped := readCapture(t, path)
	if answers < stats.Answers {
		t.Errorf("%d answers in the capture, clients had %d", answers, stats.Answers)
	}
	t.Logf("%d answers in the capture, %d numbers never on the wire, %d kills, longest gap %v", answers, skipped, kills, stats.LongestGap)
}

// readCapture checks the numbers of all answers in the capture, and counts the answers, and the numbers left out.
func readCapture(t *testing.T, path string) (answers, skipped uint64) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := pcapgo.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	var lastAt time.Time
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return answers, skipped
		}
		if err != nil {
			t.Fatal(err)
		}
		packet := gopacket.NewPacket(data, r.LinkType(), gopacket.NoCopy)
		udp, ok := packet.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || udp.SrcPort != 7777 {
			continue
		}
		a, err := register.ParseAnswer(udp.Payload)
		if err != nil {
			t.Fatalf("a frame from the guest's port: %v", err)
		}
		if a.Sequence <= last {
			t.Errorf("answer %d at %v after answer %d at %v", a.Sequence, info.Timestamp, last, lastAt)
		}
		answers++
		skipped += a.Sequence - last - 1
		last, lastAt = a.Sequence, info.Timestamp
	}
}

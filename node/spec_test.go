package node

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
)

func TestTwinRefusals(t *testing.T) {
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	must(t, err)
	g, err := build(Spec{Name: "vm", MemoryBytes: 64 << 20, CPUs: 2, Kernel: elf}, nil, silent{&writer{}}, slog.New(slog.DiscardHandler))
	must(t, err)
	defer func() { must(t, g.Close()) }()
	machine := g.Machine.Description()
	shapes := func(change func(*shape)) []byte {
		s := shape{MACs: []string{"52:54:00:00:00:01"}, Machine: machine}
		change(&s)
		b, err := json.Marshal(s)
		must(t, err)
		return b
	}
	local := Spec{Name: "vm", Nets: []Net{{Bridge: "br0"}}}
	spec, _, err := twin(local, shapes(func(*shape) {}))
	if err != nil || spec.MemoryBytes != 64<<20 || spec.CPUs != 2 || spec.Nets[0].MAC != [6]byte{0x52, 0x54, 0, 0, 0, 1} || spec.Nets[0].Bridge != "br0" {
		t.Errorf("twin of a good description: %+v, %v", spec, err)
	}
	if local.Nets[0].MAC != [6]byte{} {
		t.Error("the local specification was changed")
	}
	for _, c := range []struct {
		want        string
		description []byte
	}{
		{"read the machine's description", nil},
		{"read the machine's description", []byte("{")},
		{"at most", make([]byte, maxShape+1)},
		{"disks are not mirrored", shapes(func(s *shape) { s.Disks = 1 })},
		{"2 network interfaces", shapes(func(s *shape) { s.MACs = append(s.MACs, s.MACs[0]) })},
		{"not a MAC address", shapes(func(s *shape) { s.MACs[0] = "nonsense" })},
		{"not a MAC address", shapes(func(s *shape) { s.MACs[0] = "00:00:00:00:fe:80:00:00:00:00:00:00:02:00:5e:10:00:00:00:01" })},
		{"description", shapes(func(s *shape) { s.Machine = s.Machine[:len(s.Machine)-1] })},
	} {
		if _, _, err := twin(local, c.description); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one with %q", err, c.want)
		}
	}
}

func FuzzTwin(f *testing.F) {
	f.Add([]byte(`{"macs":["52:54:00:00:00:01"],"disks":0,"machine":"AAAA"}`))
	f.Fuzz(func(_ *testing.T, description []byte) {
		_, _, _ = twin(Spec{Nets: []Net{{}}}, description) // must not panic
	})
}

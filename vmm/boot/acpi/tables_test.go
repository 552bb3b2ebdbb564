package acpi

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata")

const testBase = 0xe0000

func build(t *testing.T, cpus int) []byte {
	t.Helper()
	b, err := Build(Config{Base: testBase, CPUs: cpus, PCIBase: 0xc000_0000, PCISize: 0x2000_0000})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sum adds all bytes, which gives 0 for a table with a right checksum.
func sum(b []byte) uint8 {
	var s uint8
	for _, v := range b {
		s += v
	}
	return s
}

// walk reads the tables as a kernel does: from the RSDP by addresses and lengths, checking sums.
func walk(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	if string(b[:8]) != "RSD PTR " || b[15] != 2 || sum(b[:20]) != 0 || sum(b[:36]) != 0 {
		t.Fatalf("RSDP % x", b[:36])
	}
	at := func(address uint64) []byte {
		t.Helper()
		off := address - testBase
		if off+8 > uint64(len(b)) || off+uint64(le.Uint32(b[off+4:])) > uint64(len(b)) {
			t.Fatalf("table at %#x is not in the block", address)
		}
		return b[off : off+uint64(le.Uint32(b[off+4:]))]
	}
	tables := map[string][]byte{}
	xsdt := at(le.Uint64(b[24:]))
	tables["XSDT"] = xsdt
	for p := xsdt[36:]; len(p) >= 8; p = p[8:] {
		table := at(le.Uint64(p))
		tables[string(table[:4])] = table
	}
	fadt := tables["FACP"]
	tables["FACS"] = at(le.Uint64(fadt[132:]))
	tables["DSDT"] = at(le.Uint64(fadt[140:]))
	if le.Uint32(fadt[36:]) != uint32(le.Uint64(fadt[132:])) || le.Uint32(fadt[40:]) != uint32(le.Uint64(fadt[140:])) {
		t.Error("the FADT's 32-bit and 64-bit addresses differ")
	}
	if le.Uint64(fadt[132:])%64 != 0 {
		t.Error("the FACS is not aligned to 64 bytes")
	}
	for name, table := range tables {
		if string(table[:4]) != name {
			t.Errorf("table %q is signed %q", name, table[:4])
		}
		if name != "FACS" && sum(table) != 0 {
			t.Errorf("table %s has a wrong checksum", name)
		}
	}
	return tables
}

func TestBuildGolden(t *testing.T) {
	b := build(t, 4)
	walk(t, b)
	golden := filepath.Join("testdata", "four-cpus.bin")
	if *update {
		if err := os.WriteFile(golden, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b); diff != "" {
		t.Errorf("tables changed; check them with iasl -d, then run with -update (-want +got):\n%s", diff)
	}
}

func TestMADTNamesEveryCPU(t *testing.T) {
	for _, cpus := range []int{1, 2, 64, MaxCPUs} {
		madt := walk(t, build(t, cpus))["APIC"]
		var ids []byte
		controllers, overrides := 0, 0
		for p := madt[44:]; len(p) > 0; {
			if len(p) < 2 || int(p[1]) < 2 || int(p[1]) > len(p) {
				t.Fatalf("%d CPUs: entry % x", cpus, p)
			}
			switch entry := p[:p[1]]; entry[0] {
			case madtLocalAPIC:
				if entry[2] != entry[3] || entry[4] != madtEnabled {
					t.Errorf("%d CPUs: processor % x", cpus, entry)
				}
				ids = append(ids, entry[3])
			case madtIOAPIC:
				controllers++
			case madtOverride:
				overrides++
				if !bytes.Equal(entry, []byte{2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0}) {
					t.Errorf("override % x", entry)
				}
			}
			p = p[p[1]:]
		}
		if len(ids) != cpus || controllers != 1 || overrides != 1 {
			t.Errorf("%d CPUs: %d local APICs, %d I/O APICs, %d overrides", cpus, len(ids), controllers, overrides)
		}
		for n, id := range ids {
			if int(id) != n {
				t.Errorf("%d CPUs: processor %d has APIC %d", cpus, n, id)
			}
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	good := Config{Base: testBase, CPUs: 1, PCIBase: 0xc000_0000, PCISize: 0x2000_0000}
	for name, edit := range map[string]func(*Config){
		"no CPU":         func(c *Config) { c.CPUs = 0 },
		"too many CPUs":  func(c *Config) { c.CPUs = MaxCPUs + 1 },
		"odd base":       func(c *Config) { c.Base++ },
		"high base":      func(c *Config) { c.Base = 1 << 32 },
		"empty window":   func(c *Config) { c.PCISize = 0 },
		"wrapping range": func(c *Config) { c.PCISize = 0x4000_0001 },
	} {
		c := good
		edit(&c)
		if _, err := Build(c); err == nil {
			t.Errorf("%s: tables were built", name)
		}
	}
}

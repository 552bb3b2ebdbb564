package vmm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/vmm/boot"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// out is a program that writes a byte to a port and then spins.
func out(port uint16, value byte) []byte {
	return []byte{
		0x66, 0xba, byte(port), byte(port >> 8), // mov $port,%dx
		0xb0, value, // mov $value,%al
		0xee,       // out %al,(%dx)
		0xeb, 0xfe, // jmp to itself
	}
}

// outWord is out with two bytes.
func outWord(port, value uint16) []byte {
	return []byte{
		0x66, 0xba, byte(port), byte(port >> 8), // mov $port,%dx
		0x66, 0xb8, byte(value), byte(value >> 8), // mov $value,%ax
		0x66, 0xef, // out %ax,(%dx)
		0xeb, 0xfe, // jmp to itself
	}
}

func TestGuestEndsItself(t *testing.T) {
	for _, c := range []struct {
		name   string
		code   []byte
		reason ExitReason
		detail string
	}{
		{"ACPI power-off", outWord(0x604, 0x3400), ExitPowerOff, "S5"},
		{"reset register", out(0xcf9, 6), ExitReboot, "reset register"},
		{"keyboard controller", out(0x64, 0xfe), ExitReboot, "keyboard"},
		{"pvpanic", out(0x505, 1), ExitPanic, "reported a panic"},
		{"triple fault", progUndefined, ExitPanic, "triple fault"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, _ := newTestMachine(t, testConfig(t, 2))
			program(t, m, progSpin, nil)
			if err := m.memory.WriteAt(c.code, guestCode); err != nil {
				t.Fatal(err)
			}
			exit, err := runToEnd(t, m)
			if err != nil || exit.Reason != c.reason || !strings.Contains(exit.Detail, c.detail) {
				t.Errorf("Run: %v, %v; want %v (%s)", exit, err, c.reason, c.detail)
			}
			if m.Freeze() == nil || m.State() != "ended" {
				t.Errorf("a machine that is over: state %s", m.State())
			}
			if _, err := m.Run(context.Background()); !errors.Is(err, ErrNotFresh) {
				t.Errorf("Run again: %v", err)
			}
		})
	}
}

// Code where there is no memory ends the machine in words that say which vCPU it was, and where. (Intel's KVM cannot emulate
// it; AMD's resets the vCPU before it tells.)
func TestVCPUErrorNamesThePlace(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 1))
	program(t, m, progSpin, func(_ int, r *kvm.Regs) { r.RIP = guestMMIO })
	exit, err := runToEnd(t, m)
	if (err != nil) != (exit.Reason == ExitError) || exit.Reason == ExitStopped ||
		!strings.Contains(exit.Detail, "vCPU 0 at RIP 0x") || !strings.Contains(exit.Detail, "CR3") {
		t.Errorf("Run: %v, %v", exit, err)
	}
}

func TestStopIsHeardAnyTime(t *testing.T) {
	for _, when := range []string{"before", "running", "frozen"} {
		t.Run(when, func(t *testing.T) {
			m, _ := newTestMachine(t, testConfig(t, 2))
			program(t, m, progSpin, nil)
			if when == "before" {
				m.Stop("early")
			} else {
				time.AfterFunc(20*time.Millisecond, func() {
					if when == "frozen" {
						if err := m.Freeze(); err != nil {
							t.Error(err)
						}
					}
					m.Stop("test")
				})
			}
			exit, err := m.Run(context.Background())
			if err != nil || exit.Reason != ExitStopped {
				t.Errorf("Run: %v, %v", exit, err)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		target error
		want   string
	}{
		{"no KVM", func(c *Config) { c.KVM = filepath.Join(dir, "kvm") }, kvm.ErrNoKVM, "load kvm_intel or kvm_amd"},
		{"not KVM", func(c *Config) { c.KVM = "/dev/null" }, kvm.ErrNoKVM, "/dev/null"},
		{"a file", func(c *Config) { c.KVM = file }, kvm.ErrNoKVM, "something else"},
		{"no logger", func(c *Config) { c.Logger = nil }, errConfig, "logger"},
		{"no CPUs", func(c *Config) { c.CPUs = 0 }, errConfig, "0 CPUs"},
		{"too many CPUs", func(c *Config) { c.CPUs = 255 }, errConfig, "255 CPUs"},
		{"no memory", func(c *Config) { c.MemoryBytes = 0 }, errConfig, "0 bytes of memory"},
		{"disk without backend", func(c *Config) { c.Disks = []Disk{{}} }, errConfig, "disk 0"},
		{"net without backend", func(c *Config) { c.Nets = []Net{{}} }, errConfig, "network device 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, 1)
			c.change(&cfg)
			m, err := New(cfg)
			if err == nil {
				m.Close()
			}
			if !errors.Is(err, c.target) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New: %v, want %q", err, c.want)
			}
		})
	}
}

func TestBootRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no kernel\n", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, kernel string
		target       error
	}{
		{"missing", filepath.Join(dir, "missing"), os.ErrNotExist},
		{"text", text, boot.ErrNotKernel},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t, 1)
			cfg.Kernel = c.kernel
			m, _ := newTestMachine(t, cfg)
			if err := m.Boot(); !errors.Is(err, c.target) || !strings.Contains(err.Error(), c.kernel) {
				t.Errorf("Boot: %v", err)
			}
		})
	}
}

// Freezes from several sides at once, each with its thaw, leave a machine that runs; a pause outlasts them.
func TestFreezesFromManySides(t *testing.T) {
	m, ports := newTestMachine(t, testConfig(t, 2))
	program(t, m, progSpin, nil)
	if err := m.memory.WriteAt(progSequence, guestCode); err != nil {
		t.Fatal(err)
	}
	running(t, m)
	done := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			var saved []byte
			for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
				if err := m.Freeze(); err != nil {
					t.Error(err)
					return
				}
				var err error
				if saved, err = m.SaveState(saved[:0]); err != nil {
					t.Error(err)
				}
				if err := m.Thaw(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
	}
	for range 4 {
		<-done
	}
	for id := range uint64(2) {
		data := guestData + id*guestStride
		start := counter(t, m, data)
		eventually(t, "guest runs on", func() bool { return counter(t, m, data) > start })
	}
	if n := ports.errors.Load(); n != 0 {
		t.Errorf("%d accesses were repeated or lost", n)
	}
	if err := m.Thaw(); !errors.Is(err, ErrNotFrozen) {
		t.Errorf("a Thaw too many: %v", err)
	}
	if _, err := m.SaveState(nil); !errors.Is(err, ErrNotFrozen) {
		t.Errorf("SaveState of a running machine: %v", err)
	}
	checkPause(t, m)
}

func checkPause(t *testing.T, m *Machine) {
	t.Helper()
	for range 2 {
		if err := m.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	freeze(t, m)
	thaw(t, m)
	if err := m.Thaw(); !errors.Is(err, ErrNotFrozen) || m.State() != "paused" {
		t.Errorf("a Thaw undid a pause: %v, %s", err, m.State())
	}
	before := counter(t, m, guestData+guestStride)
	time.Sleep(5 * time.Millisecond)
	if counter(t, m, guestData+guestStride) != before {
		t.Error("a paused guest runs")
	}
	for range 2 {
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "guest runs on", func() bool { return counter(t, m, guestData+guestStride) > before })
}

// Input and output of the serial port go on across a state transfer.
func TestSerialAcrossMachines(t *testing.T) {
	var console bytes.Buffer
	sink := devices.NewWriterSink(&console)
	cfg := testConfig(t, 1)
	cfg.Serial = sink
	m, _ := newTestMachine(t, cfg)
	// in from 0x3f8, out to 0x3f8 whenever LSR says that there is a byte
	echo := []byte{
		0x66, 0xba, 0xfc, 0x03, // mov $0x3fc,%dx
		0xb0, 0x0b, // mov $0xb,%al: DTR, RTS, OUT2
		0xee,                   // out %al,(%dx)
		0x66, 0xba, 0xfd, 0x03, // mov $0x3fd,%dx
		0xec,       // in (%dx),%al
		0xa8, 0x01, // test $1,%al
		0x74, 0xfb, // jz to in
		0x66, 0xba, 0xf8, 0x03, // mov $0x3f8,%dx
		0xec,             // in (%dx),%al
		0xee,             // out %al,(%dx)
		0x48, 0xff, 0x07, // incq (%rdi)
		0xeb, 0xec, // jmp to mov $0x3fd
	}
	program(t, m, echo, nil)
	stop := running(t, m)
	if err := m.SerialInput(t.Context(), []byte("hello ")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "guest echoes", func() bool { return counter(t, m, guestData) == 6 })
	freeze(t, m)
	saved, err := m.SaveState(nil)
	if err != nil {
		t.Fatal(err)
	}
	twin, _ := newTestMachine(t, cfg)
	copyMemory(twin.memory, m.memory)
	stop()
	if err := twin.LoadState(saved); err != nil {
		t.Fatal(err)
	}
	stop = running(t, twin)
	if err := twin.SerialInput(t.Context(), []byte("twin")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "twin echoes", func() bool { return counter(t, twin, guestData) == 10 })
	stop()
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if console.String() != "hello twin" {
		t.Errorf("console: %q", console.String())
	}
}

// 64 GiB of memory can be made, saved state and all; only what is touched costs.
func TestLargeMachine(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.MemoryBytes = 64 << 30
	m, _ := newTestMachine(t, cfg)
	program(t, m, progWalk, func(_ int, r *kvm.Regs) { r.RSI = 3 })
	running(t, m)
	eventually(t, "guest counts", func() bool { return counter(t, m, guestData+8) > 0 })
	if err := m.StartDirtyLog(); err != nil {
		t.Fatal(err)
	}
	dirty := guestmem.NewBitmap(m.memory.Frames())
	freeze(t, m)
	collect(t, m, dirty)
	dirty.Clear()
	round := counter(t, m, guestData+8)
	thaw(t, m)
	eventually(t, "guest writes its pages", func() bool { return counter(t, m, guestData+8) > round+1 })
	freeze(t, m)
	collect(t, m, dirty)
	if n := dirty.Count(); n < 3 || n > 10 {
		t.Errorf("%d pages are dirty, the guest writes 3", n)
	}
	thaw(t, m)
}

// A machine whose guest has just ended it can't be frozen any more, although Run is still waiting for threads: its state would be that of
// a guest that believes to be switched off.
func TestFreezeEndedMachine(t *testing.T) {
	m, _ := newTestMachine(t, testConfig(t, 2))
	program(t, m, progSpin, nil)
	running(t, m)
	eventually(t, "guest counts", func() bool { return counter(t, m, guestData) > 0 })
	m.mu.Lock() // Run can't finish
	m.Stop("as a handler does")
	err := m.hold()
	m.mu.Unlock()
	if !errors.Is(err, ErrOver) {
		t.Errorf("freeze: %v, want %v", err, ErrOver)
	}
}

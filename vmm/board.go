package vmm

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/pci"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// board is what a machine has beside vCPUs, memory and what Config asks for.
type board struct {
	serial *devices.Serial
	power  *devices.ACPIPM
	pci    *pci.Root
	slots  int // of the PCI bus that are taken, beside the host bridge's
}

// assemble makes the devices, in an order that is part of the machine's description.
func (m *Machine) assemble(cfg Config) error {
	if err := m.addPlatform(cfg); err != nil {
		return fmt.Errorf("build the machine's board: %w", err)
	}
	return m.addVirtio(cfg)
}

// addPlatform makes the legacy devices and the PCI bus.
func (m *Machine) addPlatform(cfg Config) error {
	reboot := func(by string) func() {
		return func() { m.end(Exit{ExitReboot, by}, nil) }
	}
	reset := devices.NewReset("reset0", reboot("reset register"))
	keyboard := devices.I8042{OnReset: reboot("keyboard controller")}
	panicked := devices.NewPvpanic("pvpanic0", m.onPanic)
	clock, err := devices.NewRTC(devices.RTCConfig{Name: "rtc0", Line: m.line(devices.RTCIRQ)})
	if err != nil {
		return err
	}
	m.board.power, err = devices.NewACPIPM(devices.ACPIPMConfig{
		Name: "acpi0", Line: m.line(devices.SCIIRQ),
		PowerOff: func() { m.end(Exit{ExitPowerOff, "ACPI S5"}, nil) },
	})
	if err != nil {
		return err
	}
	sink := cfg.Serial
	if sink == nil {
		sink = discard{}
	}
	m.board.serial, err = devices.NewSerial(devices.SerialConfig{
		Name: "serial0", Line: m.line(devices.COM1IRQ), Sink: sink,
	})
	if err != nil {
		return err
	}
	m.board.pci, err = pci.NewRoot(pci.Config{
		MMIO: m.mmio, WindowBase: pciMMIOBase, WindowSize: pciMMIOSize, ResetControl: reset, Logger: m.log,
	})
	if err != nil {
		return err
	}
	m.devices = append(m.devices, m.board.serial, clock, m.board.power, panicked, reset, m.board.pci)
	return m.registerPorts([]portRange{
		{devices.COM1Base, devices.SerialSize, m.board.serial},
		{devices.RTCBase, devices.RTCSize, clock},
		{devices.ACPIPMBase, devices.ACPIPMSize, m.board.power},
		{devices.PvpanicPort, 1, panicked},
		{devices.I8042DataPort, 1, keyboard.DataPort()},
		{devices.I8042CommandPort, 1, keyboard.CommandPort()},
		{pci.ConfigPort, pci.ConfigPorts, m.board.pci},
	})
}

type portRange struct {
	base, size uint64
	handler    devices.Handler
}

func (m *Machine) registerPorts(ranges []portRange) error {
	for _, r := range ranges {
		if err := m.ports.Register(r.base, r.size, r.handler); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) onPanic(events devices.PanicEvents) {
	if events&devices.PanicPanicked != 0 {
		m.end(Exit{ExitPanic, "the guest's kernel reported a panic"}, nil)
		return
	}
	m.log.Warn("the guest's kernel panicked, its crash kernel takes over")
}

// PressPowerButton asks the guest to power off, as the button on a case does.
func (m *Machine) PressPowerButton() { m.board.power.PressPowerButton() }

// SerialInput types p on COM1. It waits while the guest doesn't read, until ctx is done.
func (m *Machine) SerialInput(ctx context.Context, p []byte) error {
	return m.board.serial.Feed(ctx, p)
}

// line is an interrupt line of the in-kernel controllers.
func (m *Machine) line(gsi uint32) devices.Line { return irqLine{m.vm, gsi, m.log} }

type irqLine struct {
	vm  *kvm.VM
	gsi uint32
	log *slog.Logger
}

// Set implements devices.Line. KVM refuses only a line that doesn't exist.
func (l irqLine) Set(level bool) {
	if err := l.vm.SetIRQLine(l.gsi, level); err != nil {
		l.log.Error("interrupt lost", "error", err)
	}
}

// messages delivers message-signalled interrupts. It implements devices.MSISender.
type messages struct {
	vm  *kvm.VM
	log *slog.Logger
}

// SignalMSI implements devices.MSISender. The guest chooses address and data, so a refusal is the guest's mistake.
func (s messages) SignalMSI(address uint64, data uint32) {
	if _, err := s.vm.SignalMSI(address, data); err != nil {
		s.log.Debug("the guest's interrupt message goes nowhere", "error", err)
	}
}

// discard is the serial sink of a machine whose console nobody wants.
type discard struct{}

func (discard) Put(p []byte) int { return len(p) }
func (discard) OnSpace(func())   {}

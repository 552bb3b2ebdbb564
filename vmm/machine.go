package vmm

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/devices/guestmem"
	"github.com/pollux-ha/pollux/devices/state"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

// phase is where a machine is in its life; see the package's documentation.
type phase int

const (
	phaseFresh phase = iota
	phaseLive
	phaseOver
)

var (
	// ErrOver is wrapped by the error of a call that came after the machine's Run had returned.
	ErrOver = errors.New("the machine is over")
	// ErrNotFresh is wrapped by the error of Boot, LoadState or Run on a machine that has run or begun to.
	ErrNotFresh = errors.New("the machine is not fresh")
	// ErrNotFrozen is wrapped by the error of a call that needs the machine to be still.
	ErrNotFrozen = errors.New("the machine is not frozen")
)

// Machine is one virtual machine. Its methods may be called from any goroutine, except that Close must be the last one.
type Machine struct {
	name string
	log  *slog.Logger

	system *kvm.System
	vm     *kvm.VM
	memory *guestmem.Memory
	cpuid  Baseline
	vcpus  []*vcpu
	gate   gate

	ports   *devices.Bus
	mmio    *devices.Bus
	devices []devices.Device
	board   board
	vmState vmState
	dirty   dirtyLogs

	description []byte
	fingerprint [sha256.Size]byte // of description; part of every state
	encoder     state.Encoder     // for SaveState; guarded by mu

	boot    bootFiles
	started bool // Boot or LoadState has said where the guest begins; guarded by mu
	loaded  bool // it was LoadState, so the clocks have to be started; guarded by mu

	// mu serialises transitions: whoever holds it knows whether the machine is still.
	mu     sync.Mutex
	phase  phase
	holds  int  // reasons to be frozen: one for being fresh, one for Pause, one per Freeze without Thaw
	paused bool // by Pause

	endOnce sync.Once
	ended   chan struct{} // closed by end, after exit and failure were set
	exit    Exit
	failure error
}

// New builds a machine that does nothing yet: it opens KVM, maps memory, and makes vCPUs, interrupt controllers and
// devices. Errors of KVM wrap kvm.ErrNoKVM, kvm.ErrPermission or kvm.ErrCapability.
func New(cfg Config) (*Machine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m, err := newBare(cfg)
	if err != nil {
		return nil, err
	}
	if err := m.assemble(cfg); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.describe()
	return m, nil
}

// newBare builds a machine without devices.
func newBare(cfg Config) (*Machine, error) {
	m := &Machine{
		name:  cfg.Name,
		log:   cfg.Logger.With("machine", cfg.Name),
		ports: devices.NewBus(),
		mmio:  devices.NewBus(),
		holds: 1,
		ended: make(chan struct{}),
		boot:  bootFiles{kernel: cfg.Kernel, initrd: cfg.Initrd, cmdline: cfg.Cmdline},
	}
	if err := m.createVM(cfg); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := m.createVCPUs(cfg); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) createVM(cfg Config) error {
	var err error
	if m.system, err = kvm.OpenPath(cfg.kvmPath()); err != nil {
		return err
	}
	if m.vm, err = m.system.CreateVM(); err != nil {
		return err
	}
	if err := m.vm.SetIdentityMapAddress(identityMapAddress); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddress(tssAddress); err != nil {
		return err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := m.vm.CreatePIT(); err != nil {
		return err
	}
	if m.memory, err = guestmem.New(cfg.MemoryBytes); err != nil {
		return err
	}
	return m.dirty.init(m.vm, m.memory)
}

func (m *Machine) createVCPUs(cfg Config) error {
	host, err := hostBaseline(m.system)
	if err != nil {
		return err
	}
	m.cpuid = host
	if cfg.Baseline != nil {
		if err := cfg.Baseline.runsOn(host); err != nil {
			return fmt.Errorf("use another machine's CPU: %w", err)
		}
		m.cpuid = cfg.Baseline
	}
	indexes, err := m.system.MSRIndexes()
	if err != nil {
		return err
	}
	indexes = stateMSRs(indexes)
	for id := range cfg.CPUs {
		cpu, err := m.vm.CreateVCPU(id)
		if err != nil {
			return err
		}
		v := &vcpu{cpu: cpu, machine: m}
		m.vcpus = append(m.vcpus, v)
		if err := cpu.SetCPUID(m.cpuid.forCPU(id, cfg.CPUs)); err != nil {
			return err
		}
		if err := cpu.EnforcePVFeatures(); err != nil {
			return err
		}
		if err := v.state.init(cpu, indexes, m.log); err != nil {
			return err
		}
		indexes = v.state.indexes() // what the first vCPU found to be settable holds for all
	}
	m.gate.init(m.vcpus)
	return m.synchronizeTSCs()
}

// synchronizeTSCs gives all vCPUs the same TSC, without which guests distrust it and the clock that is built on it. KVM
// does so by itself only among vCPUs that were created with the frequency that they keep. Writing 0 does not set the TSC
// to 0, but joins the vCPU to the others (kvm_synchronize_tsc).
func (m *Machine) synchronizeTSCs() error {
	for _, v := range m.vcpus {
		if err := v.cpu.SetMSRs(kvm.NewMSRs([]uint32{msrTSC})); err != nil {
			return fmt.Errorf("synchronize TSCs: %w", err)
		}
	}
	return nil
}

// Close gives everything back. Run must have returned, or never been called.
func (m *Machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseLive {
		return errors.New("close machine: it is running")
	}
	m.phase = phaseOver
	var errs []error
	for _, d := range m.devices {
		d.Freeze()
		if c, ok := d.(interface{ Close() error }); ok {
			if err := c.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close device %s: %w", d.Name(), err))
			}
		}
	}
	m.devices = nil
	m.gate.forget()
	for _, v := range m.vcpus {
		errs = append(errs, v.cpu.Close())
	}
	m.vcpus = nil
	// The VM goes before the memory, which it maps.
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
		m.vm = nil
	}
	if m.memory != nil {
		errs = append(errs, m.memory.Close())
		m.memory = nil
	}
	if m.system != nil {
		errs = append(errs, m.system.Close())
		m.system = nil
	}
	return errors.Join(errs...)
}

// State says in a word what the machine does: fresh, running, paused (by Pause) or ended. A freeze is too short to have a name.
func (m *Machine) State() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.phase == phaseOver:
		return "ended"
	case m.phase == phaseFresh:
		return "fresh"
	case m.paused:
		return "paused"
	}
	return "running"
}

// Name is the machine's name, as configured.
func (m *Machine) Name() string { return m.name }

// Memory is the guest's RAM. Whoever writes it while the dirty log is on marks what it wrote.
func (m *Machine) Memory() *guestmem.Memory { return m.memory }

// CPUs is the number of vCPUs.
func (m *Machine) CPUs() int { return len(m.vcpus) }

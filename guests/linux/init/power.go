//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// An input event (linux/input.h, struct input_event on 64-bit): time 16 bytes, type u16, code u16, value i32.
const (
	inputEventSize = 24
	evKey          = 1
	keyPower       = 116
)

// watchPowerButton powers off when the ACPI power button is pressed. Which input device that is doesn't matter: only a
// power button sends its key. Devices appear when their driver is ready, so they are looked for again and again.
func (g *guest) watchPowerButton() {
	pressed := make(chan struct{}, 1)
	open := make(map[string]bool)
	// Ever more rarely: an idle guest should have nothing to do.
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		names, err := filepath.Glob("/dev/input/event*")
		if err != nil {
			g.log.Error("look for the power button", "error", err) // only a bad pattern can cause it
			return
		}
		for _, name := range names {
			if open[name] {
				continue
			}
			f, err := os.Open(name)
			if err != nil {
				continue // gone again, or not made yet
			}
			open[name] = true
			go watchKeys(f, pressed)
		}
		select {
		case <-pressed:
			fmt.Println("pollux-guest: power button pressed, powering off")
			g.log.Error("power off", "error", powerOff())
		case <-time.After(pause):
		}
	}
}

// watchKeys reports every press of a power key until the device goes.
func watchKeys(f *os.File, pressed chan<- struct{}) {
	defer f.Close()
	var event [inputEventSize]byte
	for {
		if _, err := io.ReadFull(f, event[:]); err != nil {
			return
		}
		if isPowerKey(event[:]) {
			select {
			case pressed <- struct{}{}:
			default:
			}
		}
	}
}

// isPowerKey tells whether an input event is the power key going down.
func isPowerKey(event []byte) bool {
	return binary.LittleEndian.Uint16(event[16:]) == evKey && binary.LittleEndian.Uint16(event[18:]) == keyPower &&
		binary.LittleEndian.Uint32(event[20:]) == 1
}

// powerOff ends the machine; it returns only if that fails.
func powerOff() error {
	unix.Sync()
	return fmt.Errorf("ask the kernel to power off: %w", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// reboot resets the machine; it returns only if that fails.
func reboot() error {
	unix.Sync()
	return fmt.Errorf("ask the kernel to restart: %w", unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

// crash makes the kernel panic, by its own key if it has one, or by the death of the first process.
func crash() error {
	err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	fmt.Printf("pollux-guest: no sysrq (%v), exiting instead\n", err)
	os.Exit(1)
	return err
}

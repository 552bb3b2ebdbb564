// Package testtier decides whether a test of the machine or the lab tier can run here, and makes sure that one which is
// required never hides behind a skip.
//
// Unit tests need nothing from this package. A machine-tier test calls Machine first: it needs a working /dev/kvm of any
// kind. A lab-tier test calls Lab: it needs what the lab's emulated nodes need. `make test` sets POLLUX_REQUIRE_TIERS to the tiers
// that it has set up; in such a tier a missing piece fails the test instead of skipping it.
package testtier

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireEnv names the environment variable that lists, with commas, the tiers that must not skip: "machine,lab".
const RequireEnv = "POLLUX_REQUIRE_TIERS"

// Machine returns if /dev/kvm works here. Otherwise it fails the test when the tier is required, else skips it, and says what is
// missing.
func Machine(t testing.TB) {
	t.Helper()
	gate(t, "machine", KVMMissing())
}

// Lab returns if emulated nodes can be run here (root, QEMU, a tap device). Otherwise like Machine.
func Lab(t testing.TB) {
	t.Helper()
	gate(t, "lab", labMissing())
}

func gate(t testing.TB, tier string, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if slices.Contains(strings.Split(os.Getenv(RequireEnv), ","), tier) {
		t.Fatalf("the %s tier is required here (%s) and can't run: %v", tier, RequireEnv, missing)
	}
	t.Skipf("the %s tier can't run here: %v", tier, missing)
}

// KVMMissing says why the machine tier can't run here; nil if it can.
func KVMMissing() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/kvm: %w", err)
	}
	defer f.Close()
	const getAPIVersion = 0xae00 // KVM_GET_API_VERSION
	v, err := unix.IoctlRetInt(int(f.Fd()), getAPIVersion)
	if err != nil {
		return fmt.Errorf("/dev/kvm: get its API version: %w", err)
	}
	if v != 12 {
		return fmt.Errorf("/dev/kvm: API version %d, want 12", v)
	}
	return nil
}

func labMissing() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("network namespaces and taps need root, this is uid %d", os.Geteuid())
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return fmt.Errorf("emulated nodes need QEMU (Debian: apt-get install qemu-system-x86): %w", err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("taps: %w", err)
	}
	return nil
}

package node

import (
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/pollux-ha/pollux/vmm/boot"
)

// warnParavirtual tells the user of a Linux kernel that it will hardly boot, on a machine whose KVM works without the
// processor's help (PVM): such a KVM interprets guest kernels, slowly and in part, and the kernel dies without a word.
func warnParavirtual(kernel string, log *slog.Logger) {
	version, err := boot.LinuxVersion(kernel)
	if err != nil {
		return // no Linux; what it is, Boot will say
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || hardwareKVM(string(cpuinfo)) {
		return
	}
	log.Warn("this machine's KVM is paravirtual (its CPU shows neither svm nor vmx): Linux guests are not expected to boot here; the lab's emulated hosts run them",
		"kernel", version)
}

// hardwareKVM reports whether the first processor of /proc/cpuinfo offers hardware virtualization.
func hardwareKVM(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		if name, flags, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			fields := strings.Fields(flags)
			return slices.Contains(fields, "svm") || slices.Contains(fields, "vmx")
		}
	}
	return false
}

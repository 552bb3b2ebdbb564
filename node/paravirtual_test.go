package node

import "testing"

func TestHardwareKVM(t *testing.T) {
	for cpuinfo, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu svm sse\n": true,
		"flags\t\t: fpu vmx\n":                     true,
		"flags\t\t: fpu sse2 svm_lock\n":           false,
		"bugs\t\t: svm\n":                          false,
		"":                                         false,
	} {
		if got := hardwareKVM(cpuinfo); got != want {
			t.Errorf("%q: %v, want %v", cpuinfo, got, want)
		}
	}
}

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/guests/bare"
	"github.com/pollux-ha/pollux/tests/testtier"
)

// buildPollux builds the whole product.
func buildPollux(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pollux")
	cmd := exec.Command("go", "build", "-o", path, "../../cmd/pollux")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build pollux: %v\n%s", err, out)
	}
	return path
}

// TestDemoBare is the demo with the bare guest in namespaces, on this machine's own KVM of whatever kind.
func TestDemoBare(t *testing.T) {
	testtier.Lab(t)
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log := testLogger(t)
	dir := t.TempDir()
	report, err := Demo(t.Context(), DemoConfig{
		Lab:         Config{Dir: filepath.Join(dir, "lab"), Backend: Namespaces, Binary: buildPollux(t), Logger: log},
		GuestKernel: elf, KernelName: "bare", GuestAppend: "ws=500 rate=5000",
		Before: 3 * time.Second, After: 3 * time.Second, Report: filepath.Join(dir, "report.json"), Out: t.Output(), Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	if report.Tier != "namespaces" || report.AnswersBefore < 100 || report.AnswersAfter < 100 || report.Epochs < 20 {
		t.Errorf("report %+v", report)
	}
}

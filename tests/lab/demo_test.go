package lab

import (
	"context"
	"errors"
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

// TestDemoStopped ends a demo in the middle, as Ctrl-C does: nothing is left of it.
func TestDemoStopped(t *testing.T) {
	testtier.Lab(t)
	testtier.Machine(t)
	elf, err := bare.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log := testLogger(t)
	dir := filepath.Join(t.TempDir(), "lab")
	binary := buildPollux(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	_, err = Demo(ctx, DemoConfig{
		Lab:         Config{Dir: dir, Backend: Namespaces, Binary: binary, Logger: log},
		GuestKernel: elf, KernelName: "bare", Before: time.Hour, Out: t.Output(), Logger: log,
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a demo that was stopped gives %v", err)
	}
	for _, what := range append(Nodes(), switchNamespace) {
		if name := namespaceName(labID(dir), what); namespaceExists(name) {
			t.Errorf("network namespace %s is left", name)
		}
	}
	if _, err := Open(dir, log); !errors.Is(err, errNoState) {
		t.Errorf("the state of the lab is left: %v", err)
	}
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

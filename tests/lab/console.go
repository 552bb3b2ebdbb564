package lab

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// consoleTail is how much of a console's end is looked at, in bytes: a panic with two stack traces takes about 12 KiB.
const consoleTail = 64 << 10

// verdict is one thing that a console can say about a death, the most telling first: a stack overflow ends in a panic, too.
var verdicts = []struct {
	cause   Cause
	pattern *regexp.Regexp
}{
	{CauseStackGuard, regexp.MustCompile(`(?:TASK|IRQ|#DF|NMI|#DB|#MC|#VC\w*) stack guard page was hit.*|kernel stack overflow.*`)},
	{CauseNodeInit, regexp.MustCompile(`Kernel panic - not syncing: (?:Attempted to kill init|No working init|Requested init).*|msg="lab node failed".*`)},
	{CauseOops, regexp.MustCompile(`(?:BUG: (?:unable to handle|kernel NULL|scheduling while)|kernel BUG at|Oops:|double fault:|general protection fault,|PANIC: ).*`)},
	{CauseLockup, regexp.MustCompile(`(?:watchdog: BUG: soft lockup|NMI watchdog: Watchdog detected hard LOCKUP|rcu: INFO: rcu_\w+ (?:self-)?detected stall|blocked for more than \d+ seconds).*`)},
	{CausePanic, regexp.MustCompile(`Kernel panic - not syncing.*`)},
	{CauseShutdown, regexp.MustCompile(`reboot: (?:Power down|System halted|Restarting system).*`)},
}

// emulatorFault matches QEMU's complaints about itself.
var emulatorFault = regexp.MustCompile(`qemu(?:-system-\w+)?: (?:fatal|.*(?:failed|error|cannot|could not)).*|\*\*\* .*|ERROR:.*|Segmentation fault.*`)

// classify reads the cause of a death from a console and QEMU's own words. ok is false if they don't tell.
func classify(console, emulator string) (cause Cause, detail string, ok bool) {
	for _, v := range verdicts {
		if line := v.pattern.FindString(console); line != "" {
			return v.cause, clean(line), true
		}
	}
	if line := emulatorFault.FindString(emulator); line != "" {
		return CauseEmulator, clean(line), true
	}
	return "", "", false
}

func clean(line string) string {
	const most = 200
	line = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' {
			return -1
		}
		return r
	}, line))
	if len(line) > most {
		line = line[:most] + "…"
	}
	return line
}

// readTail returns the last most bytes of a file, from a line's beginning; a file that isn't there is empty.
func readTail(path string, most int64) (string, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("lab: read the end of a log: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("lab: read the end of %s: %w", path, err)
	}
	start := max(size-most, 0)
	b, err := io.ReadAll(io.NewSectionReader(f, start, size-start))
	if err != nil {
		return "", fmt.Errorf("lab: read the end of %s: %w", path, err)
	}
	s := string(b)
	if _, rest, found := strings.Cut(s, "\n"); found && start > 0 {
		s = rest
	}
	return s, nil
}

// lastLines returns at most n lines from the end of s.
func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

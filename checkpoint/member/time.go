package member

import (
	"time"

	"golang.org/x/sys/unix"
)

// now is the time since the host's start, sleep included: a node that was suspended must notice.
func now() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Now().Round(0) // a kernel without it; only speed depends on it
	}
	return time.Unix(ts.Unix())
}

package bare

import (
	"strconv"
	"strings"
)

// Counters returns the numbers in one of the guest's progress lines by their keys ("tick", "dirtied", …; see the package's
// documentation). False if the line is another one.
func Counters(line string) (map[string]uint64, bool) {
	if !strings.HasPrefix(line, "tick=") {
		return nil, false
	}
	m := make(map[string]uint64)
	for word := range strings.FieldsSeq(line) {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, false
		}
		if n, err := strconv.ParseUint(value, 10, 64); err == nil {
			m[key] = n // gateway's value is a word
		}
	}
	return m, true
}

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// tally counts tests (subtests too) over all stages.
type tally struct {
	passed, failed, skipped int
}

// event is one line of go test -json (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

// read follows one go test -json: it prints a line a package, and the output of what failed or was skipped. A skip is an
// error, unless it says that its tier can't run here and that is expected (allowTierSkips).
func (s *tally) read(r io.Reader, w io.Writer, allowTierSkips bool) error {
	outputs := map[string]*strings.Builder{}
	var bad []error
	scan := bufio.NewScanner(r)
	scan.Buffer(make([]byte, 0, 64<<10), 16<<20)
	for scan.Scan() {
		var e event
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			fmt.Fprintf(w, "%s\n", scan.Bytes()) // a build error, in old formats
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			b := outputs[key]
			if b == nil {
				b = &strings.Builder{}
				outputs[key] = b
			}
			b.WriteString(e.Output)
			if e.Action == "build-output" {
				fmt.Fprint(w, e.Output)
			}
			continue
		case "pass", "fail", "skip":
		default:
			continue
		}
		said := ""
		if b := outputs[key]; b != nil {
			said = b.String()
			delete(outputs, key)
		}
		if e.Test == "" {
			fmt.Fprintf(w, "%-4s %7.1fs %s\n", e.Action, e.Elapsed, e.Package)
			if e.Action == "fail" {
				fmt.Fprint(w, said)
			}
			continue
		}
		switch e.Action {
		case "pass":
			s.passed++
		case "fail":
			s.failed++
			fmt.Fprint(w, said)
		case "skip":
			s.skipped++
			if !allowTierSkips || !strings.Contains(said, "tier can't run here") {
				bad = append(bad, fmt.Errorf("required test %s was skipped: %s", key, strings.TrimSpace(said)))
			}
		}
	}
	return errors.Join(append(bad, scan.Err())...)
}

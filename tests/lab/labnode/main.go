// Command labnode is the first process of a lab node in tests, without the rest of the pollux binary, and the little tools that
// tests run in nodes, which have no shell.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/tests/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("no command")
	}
	command, args := args[0], append(args[1:], "", "")
	switch command {
	case "lab-node":
		return lab.NodeMain(context.Background(), args[0])
	case "echo": // copies standard input to standard output
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "exit": // ends with the status
		status, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(status)
	case "write": // writes the text to the file
		return os.WriteFile(args[0], []byte(args[1]), 0)
	case "sleep": // waits, deaf to SIGTERM if asked so
		if args[1] == "deaf" {
			signal.Ignore(unix.SIGTERM)
		}
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return err
		}
		time.Sleep(d)
	case "orphan": // leaves a process behind that outlives its parent for a moment
		_, err := os.StartProcess("/proc/self/exe", []string{"labnode", "sleep", "100ms"}, &os.ProcAttr{})
		return err
	default:
		return fmt.Errorf("no command %q", command)
	}
	return nil
}

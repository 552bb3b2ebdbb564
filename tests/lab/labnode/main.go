// Command labnode is the first process of a lab node in tests, without the rest of the pollux binary.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/pollux-ha/pollux/tests/lab"
)

func main() {
	config := ""
	if len(os.Args) > 2 { // "lab-node", CONFIG
		config = os.Args[2]
	}
	if err := lab.NodeMain(context.Background(), config); err != nil {
		fmt.Fprintln(os.Stderr, "labnode:", err)
		os.Exit(1)
	}
}

// Command mkbare builds the bare guest where package bare's Path says, if it is missing or stale, and prints its path.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/pollux-ha/pollux/guests/bare"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	path, err := bare.Ensure(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mkbare:", err)
		stop()
		os.Exit(1)
	}
	fmt.Println(path)
}

// Command setup prepares a machine for `make demo` and `make test`: "setup packages" installs what a fresh Debian machine lacks and
// says clearly what is missing where it can't; "setup guests" builds the test guests.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// need is one thing that has to be on the machine, and the Debian package that brings it.
type need struct {
	program string // looked up in PATH; empty: path
	path    string // looked up as a file
	pkg     string
	why     string
}

var needs = []need{
	{program: "gcc", pkg: "gcc", why: "builds the bare-metal test guest"},
	{program: "qemu-system-x86_64", pkg: "qemu-system-x86", why: "emulated hosts in the lab"},
	{program: "dpkg-deb", pkg: "dpkg", why: "unpacks Debian's kernel"},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	what := ""
	if len(os.Args) == 2 {
		what = os.Args[1]
	}
	if err := run(ctx, what); err != nil {
		fmt.Fprintf(os.Stderr, "setup: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what string) error {
	switch what {
	case "packages":
		return packages(ctx)
	case "guests":
		return guests(ctx)
	}
	return fmt.Errorf("%q: want packages or guests", what)
}

func packages(ctx context.Context) error {
	if missing := lookUp(needs); len(missing) > 0 {
		if err := install(ctx, missing); err != nil {
			return err
		}
	}
	return checkHost()
}

func lookUp(needs []need) []need {
	return slices.DeleteFunc(slices.Clone(needs), func(n need) bool {
		if n.program != "" {
			_, err := exec.LookPath(n.program)
			return err == nil
		}
		_, err := os.Stat(n.path)
		return err == nil
	})
}

func install(ctx context.Context, missing []need) error {
	var pkgs, lines []string
	for _, n := range missing {
		pkgs = append(pkgs, n.pkg)
		lines = append(lines, fmt.Sprintf("  %-20s %s", n.pkg, n.why))
	}
	byHand := fmt.Errorf("missing, please install:\n%s", strings.Join(lines, "\n"))
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this is not a Debian machine (no apt-get); %w", byHand)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("not root, can't install packages; %w\nas root: apt-get install %s", byHand, strings.Join(pkgs, " "))
	}
	fmt.Printf("setup: installing %s\n", strings.Join(pkgs, " "))
	if err := apt(ctx, "update", "-qq"); err != nil {
		return fmt.Errorf("%w; %w", err, byHand)
	}
	if err := apt(ctx, append([]string{"install", "-y", "-qq", "--no-install-recommends"}, pkgs...)...); err != nil {
		return fmt.Errorf("%w; %w", err, byHand)
	}
	if still := lookUp(missing); len(still) > 0 {
		return fmt.Errorf("apt-get installed %s, but %s is still not there", still[0].pkg, still[0].program+still[0].path)
	}
	return nil
}

// apt runs apt-get, and shows what it said only when it fails: it talks a lot.
func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// checkHost looks for what no package brings.
func checkHost() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, fmt.Errorf("network namespaces and taps need root; this is uid %d", os.Geteuid()))
	}
	if err := unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK); err != nil {
		errs = append(errs, fmt.Errorf("/dev/net/tun: %w: the kernel needs tun (modprobe tun), and this user access to it", err))
	}
	switch err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		fmt.Println("setup: no /dev/kvm here: machine-tier tests run inside an emulated host, slowly")
	default:
		fmt.Printf("setup: /dev/kvm: %v: machine-tier tests run inside an emulated host, slowly\n", err)
	}
	return errors.Join(errs...)
}

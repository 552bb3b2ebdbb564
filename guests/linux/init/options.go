//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/pollux-ha/pollux/guests/register"
)

// options are what the kernel command line says to the guest.
type options struct {
	addresses []address
	gateway   netip.Addr
	port      int
	dirtier   *dirtier // nil: none
}

// address is one of a network card.
type address struct {
	card   string // "eth0"; empty: the first one
	prefix netip.Prefix
}

func readCmdline() (options, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return options{port: register.Port}, err
	}
	return parseCmdline(string(b))
}

// parseCmdline takes what can be understood and returns an error for the rest. Words without "pollux." are the kernel's.
func parseCmdline(line string) (options, error) {
	o := options{port: register.Port}
	var errs []error
	for _, word := range strings.Fields(line) {
		key, value, _ := strings.Cut(word, "=")
		name, ours := strings.CutPrefix(key, "pollux.")
		if !ours {
			continue
		}
		if err := o.set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", word, err))
		}
	}
	return o, errors.Join(errs...)
}

func (o *options) set(name, value string) (err error) {
	switch name {
	case "ip":
		var a address
		// An IPv6 address has colons too; a card's name is what comes before the first one if that is no number.
		if card, rest, ok := strings.Cut(value, ":"); ok && strings.HasPrefix(card, "eth") {
			a.card, value = card, rest
		}
		if a.prefix, err = netip.ParsePrefix(value); err == nil {
			o.addresses = append(o.addresses, a)
		}
	case "gw":
		o.gateway, err = netip.ParseAddr(value)
	case "port":
		var n uint64
		if n, err = strconv.ParseUint(value, 10, 16); err == nil && n == 0 {
			err = errors.New("a port is 1 to 65535")
		}
		if err == nil {
			o.port = int(n)
		}
	case "dirty":
		o.dirtier, err = parseDirtier(value)
	default:
		err = errors.New("unknown: there are pollux.ip, pollux.gw, pollux.port and pollux.dirty")
	}
	return err
}

package main

import (
	"crypto/sha256"
	"fmt"
	"math/bits"
	"net"
	"strconv"
	"strings"

	"github.com/pollux-ha/pollux/node"
)

// size is a number of bytes: 512M, 4G, 1048576.
type size uint64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *size) UnmarshalText(text []byte) error {
	t := strings.TrimSuffix(strings.ToUpper(string(text)), "B")
	t = strings.TrimSuffix(t, "I")
	shift := 0
	if i := len(t) - 1; i >= 0 {
		if p := strings.IndexByte("KMGT", t[i]); p >= 0 {
			shift, t = 10*(p+1), t[:i]
		}
	}
	n, err := strconv.ParseUint(t, 10, 64)
	if err != nil || bits.Len64(n)+shift > 64 {
		return fmt.Errorf("%q is not a size: want a number and K, M, G or T, such as 512M", text)
	}
	*s = size(n << shift)
	return nil
}

// netFlag is tap=NAME, bridge=NAME, mac=ADDRESS with commas.
type netFlag struct{ node.Net }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *netFlag) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), ",") {
		key, value, _ := strings.Cut(part, "=")
		if value == "" {
			return fmt.Errorf("%q: want tap=NAME, bridge=NAME and mac=ADDRESS, with commas", text)
		}
		switch key {
		case "tap":
			f.Tap = value
		case "bridge":
			f.Bridge = value
		case "mac":
			mac, err := net.ParseMAC(value)
			if err != nil || len(mac) != len(f.MAC) {
				return fmt.Errorf("%q is not a MAC address such as 52:54:00:12:34:56", value)
			}
			copy(f.MAC[:], mac)
		default:
			return fmt.Errorf("%q: no such setting %q: want tap, bridge, mac", text, key)
		}
	}
	return nil
}

// nets gives every interface its MAC address: the same machine keeps the same addresses, wherever and whenever it runs.
func nets(machine string, flags []netFlag) []node.Net {
	var all []node.Net
	for i, f := range flags {
		if f.MAC == [6]byte{} {
			sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", machine, i))
			copy(f.MAC[:], []byte{0x52, 0x54, 0x00, sum[0], sum[1], sum[2]}) // the locally administered range that QEMU made usual
		}
		all = append(all, f.Net)
	}
	return all
}

//go:build linux

package main

import (
	"net/netip"
	"reflect"
	"testing"
)

func TestCmdline(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		line string
		want options
		bad  bool
	}{
		{"console=ttyS0 panic=1\n", options{port: 7777}, false},
		{
			"pollux.ip=10.77.0.10/24 pollux.gw=10.77.0.1 pollux.port=80 pollux.ip=eth1:10.1.0.1/16 pollux.ip=2001:db8::5/64",
			options{
				addresses: []address{{"", prefix("10.77.0.10/24")}, {"eth1", prefix("10.1.0.1/16")}, {"", prefix("2001:db8::5/64")}},
				gateway:   netip.MustParseAddr("10.77.0.1"), port: 80,
			},
			false,
		},
		{"pollux.ip=10.77.0.10", options{port: 7777}, true},
		{"pollux.port=70000 pollux.gw=x", options{port: 7777}, true},
		{"pollux.port=0", options{port: 7777}, true},
		{"pollux.colour=blue pollux.ip=10.0.0.1/8", options{port: 7777, addresses: []address{{"", prefix("10.0.0.1/8")}}}, true},
	}
	for _, tt := range tests {
		got, err := parseCmdline(tt.line)
		if (err != nil) != tt.bad {
			t.Errorf("%q: %v", tt.line, err)
		}
		if tt.bad {
			got.gateway = netip.Addr{}
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, want %+v", tt.line, got, tt.want)
		}
	}
}

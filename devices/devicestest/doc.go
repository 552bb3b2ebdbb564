// Package devicestest is the suite that every device passes: a machine is only as restorable as its worst device.
//
// A device's own test gives Run a Factory, which builds the device with a small guest around it, and Run checks what
// devices.Device promises: it is created frozen; Freeze and Thaw may be repeated; what Save wrote, a fresh device loads,
// saves again byte for byte, and carries on from; bytes that are cut, altered or of another version are refused whole; a
// running device is neither saved nor loaded; Save does not allocate; Close leaves no goroutine behind.
//
// The suite fixes two things that the interface leaves open. Save writes exactly one section, whose name is
// Device.Name, so that the device and nobody else owns its version number. And Save of a running device panics: it is an
// error in the VMM, and a torn checkpoint must not reach the twin.
//
// Only tests import this package.
package devicestest

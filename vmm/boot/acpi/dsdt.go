package acpi

import (
	"github.com/pollux-ha/pollux/devices"
	"github.com/pollux-ha/pollux/vmm/boot/aml"
)

// PCI's configuration ports, which the bridge keeps to itself: its windows leave them out.
const (
	pciConfigPort = 0xcf8
	pciConfigSize = 8
)

// deviceOn is what _STA gives for a device that is present, enabled, shown and working (§6.3.7).
const deviceOn = 0x0f

// dsdt is the differentiated system description (§5.2.11.1), after its header: what cannot be enumerated.
func dsdt(c Config) []byte {
	var t []byte
	for _, term := range []aml.Term{
		softOff(),
		aml.Scope(`\_SB`, hostBridge(c), board(), serialPort(), clock(), pvpanic()),
	} {
		t = append(t, term...)
	}
	return t
}

// softOff says what to write into PM1 control to enter S5 (§7.4.2); no other sleep state exists.
func softOff() aml.Term {
	sleepType := aml.Integer(devices.ACPISleepTypeS5)
	return aml.Name(`\_S5`, aml.Package(sleepType, sleepType, aml.Integer(0), aml.Integer(0)))
}

// hostBridge is the PCI bus. It is conventional PCI: there is no memory-mapped configuration space. It has no _PRT,
// because no device has an interrupt pin.
func hostBridge(c Config) aml.Term {
	return aml.Device("PCI0",
		aml.Name("_HID", aml.EISAID("PNP0A03")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_BBN", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.BusNumbers(0, 0),
			aml.PortWindow(0, pciConfigPort-1),
			aml.PortWindow(pciConfigPort+pciConfigSize, 0xffff),
			aml.MemoryWindow(c.PCIBase, c.PCIBase+(c.PCISize-1)),
		)),
	)
}

// board keeps the ports of the power management block from being given to a PCI device.
func board() aml.Term {
	return aml.Device("MBRD",
		aml.Name("_HID", aml.EISAID("PNP0C02")),
		aml.Name("_UID", aml.Integer(0)),
		aml.Name("_CRS", aml.ResourceTemplate(aml.Ports(devices.ACPIPMBase, devices.ACPIPMSize))),
	)
}

func serialPort() aml.Term {
	return aml.Device("COM1",
		aml.Name("_HID", aml.EISAID("PNP0501")),
		aml.Name("_UID", aml.Integer(1)),
		aml.Name("_STA", aml.Integer(deviceOn)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Ports(devices.COM1Base, devices.SerialSize),
			aml.IRQ(devices.COM1IRQ),
		)),
	)
}

func clock() aml.Term {
	return aml.Device("RTC",
		aml.Name("_HID", aml.EISAID("PNP0B00")),
		aml.Name("_STA", aml.Integer(deviceOn)),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Ports(devices.RTCBase, devices.RTCSize),
			aml.IRQ(devices.RTCIRQ),
		)),
	)
}

func pvpanic() aml.Term {
	return aml.Device("PEVT",
		aml.Name("_HID", aml.String("QEMU0001")),
		aml.Name("_STA", aml.Integer(deviceOn)),
		aml.Name("_CRS", aml.ResourceTemplate(aml.Ports(devices.PvpanicPort, 1))),
	)
}

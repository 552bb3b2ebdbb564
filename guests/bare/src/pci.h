/* PCI configuration space through ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, 3.2.2.3.2): finding devices, BARs, MSI-X. */
#ifndef PCI_H
#define PCI_H

#include <stdbool.h>
#include <stdint.h>

/* A function on bus 0, as bits 8 to 15 of the configuration address. */
struct pci_function {
	uint8_t slot;     /* device << 3 | function */
	uint8_t msix;     /* offset of the MSI-X capability, 0 none */
	uint16_t vendor, device;
};

uint8_t pci_read8(const struct pci_function *function, unsigned offset);
uint16_t pci_read16(const struct pci_function *function, unsigned offset);
uint32_t pci_read32(const struct pci_function *function, unsigned offset);
void pci_write16(const struct pci_function *function, unsigned offset, uint16_t value);
void pci_write32(const struct pci_function *function, unsigned offset, uint32_t value);

/* Finds the first function on bus 0 whose vendor matches and whose device is one of two. */
bool pci_find(struct pci_function *function, uint16_t vendor, uint16_t device, uint16_t or_device);

/* The offset of the next capability with this id after the one at offset (0: from the start); 0 when there is none. */
unsigned pci_next_capability(const struct pci_function *function, uint8_t id, unsigned offset);

/* Gives every memory BAR that has no address one, then switches on memory decoding and bus mastering. */
void pci_enable(const struct pci_function *function);

/* The address and size of a memory BAR; panics when there is none. */
uint64_t pci_bar(const struct pci_function *function, unsigned index, uint64_t *size);

/* Routes MSI-X table entry to a message vector of irq.h. pci_msix_enable first; false without MSI-X. */
bool pci_msix_enable(struct pci_function *function);
void pci_msix_route(const struct pci_function *function, unsigned entry, unsigned message);

#endif

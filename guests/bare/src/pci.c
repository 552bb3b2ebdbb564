#include "pci.h"

#include "cpu.h"
#include "irq.h"
#include "memory.h"
#include "power.h"

enum {
	CONFIG_ADDRESS = 0xcf8,
	CONFIG_DATA = 0xcfc,

	/* Type 0 header. */
	VENDOR_ID = 0x00,
	COMMAND = 0x04,
	STATUS = 0x06,
	HEADER_TYPE = 0x0e,
	BAR0 = 0x10,
	CAPABILITIES = 0x34,

	COMMAND_MEMORY = 1 << 1,
	COMMAND_MASTER = 1 << 2,
	STATUS_CAPABILITIES = 1 << 4,
	HEADER_MULTIFUNCTION = 0x80,
	BAR_COUNT = 6,
	BAR_IO = 1 << 0,
	BAR_64BIT = 2 << 1,
	BAR_TYPE = 3 << 1,

	/* MSI-X capability (PCI 3.0, 6.8.2). */
	CAPABILITY_MSIX = 0x11,
	MSIX_CONTROL = 2,
	MSIX_TABLE = 4,
	MSIX_ENABLE = 1 << 15,
	MSIX_MASK_ALL = 1 << 14,
	MSIX_TABLE_SIZE = 0x7ff,
	MSIX_ENTRY_SIZE = 16,
};

#define BAR_ADDRESS 0xfffffff0u

/* Where BARs go that no firmware has placed: the hole that every supported platform leaves below 4 GiB. */
#define WINDOW_START 0xc0000000ull
#define WINDOW_END 0xe0000000ull

static void select(const struct pci_function *function, unsigned offset)
{
	out32(CONFIG_ADDRESS, 1u << 31 | (uint32_t)function->slot << 8 | (offset & 0xfc));
}

uint32_t pci_read32(const struct pci_function *function, unsigned offset)
{
	select(function, offset);
	return in32(CONFIG_DATA);
}

uint16_t pci_read16(const struct pci_function *function, unsigned offset)
{
	return (uint16_t)(pci_read32(function, offset) >> (offset & 2) * 8);
}

uint8_t pci_read8(const struct pci_function *function, unsigned offset)
{
	return (uint8_t)(pci_read32(function, offset) >> (offset & 3) * 8);
}

void pci_write32(const struct pci_function *function, unsigned offset, uint32_t value)
{
	select(function, offset);
	out32(CONFIG_DATA, value);
}

void pci_write16(const struct pci_function *function, unsigned offset, uint16_t value)
{
	select(function, offset);
	out16((uint16_t)(CONFIG_DATA + (offset & 2)), value);
}

static bool present(struct pci_function *function, unsigned slot)
{
	*function = (struct pci_function){.slot = (uint8_t)slot};

	uint32_t ids = pci_read32(function, VENDOR_ID);

	function->vendor = (uint16_t)ids;
	function->device = (uint16_t)(ids >> 16);
	return function->vendor != 0xffff;
}

/* Steps *slot to the next function that is there, itself included. */
static bool next_function(struct pci_function *function, unsigned *slot)
{
	for (; *slot < 256; ++*slot) {
		struct pci_function first = {.slot = (uint8_t)(*slot & ~7u)};

		if (*slot & 7 && !(pci_read8(&first, HEADER_TYPE) & HEADER_MULTIFUNCTION))
			*slot |= 7;
		else if (present(function, *slot))
			return true;
	}
	return false;
}

bool pci_find(struct pci_function *function, uint16_t vendor, uint16_t device, uint16_t or_device)
{
	for (unsigned slot = 0; next_function(function, &slot); slot++)
		if (function->vendor == vendor && (function->device == device || function->device == or_device))
			return true;
	return false;
}

unsigned pci_next_capability(const struct pci_function *function, uint8_t id, unsigned offset)
{
	enum { CAPABILITIES_MAX = 48 }; /* as many as fit in 256 bytes: a list that loops ends here */

	if (!(pci_read16(function, STATUS) & STATUS_CAPABILITIES))
		return 0;
	offset = pci_read8(function, offset ? offset + 1 : CAPABILITIES) & 0xfc;
	for (unsigned i = 0; offset >= 0x40 && i < CAPABILITIES_MAX; i++) {
		if (pci_read8(function, offset) == id)
			return offset;
		offset = pci_read8(function, offset + 1) & 0xfc;
	}
	return 0;
}

static bool is_memory_bar(uint32_t low)
{
	return !(low & BAR_IO);
}

static bool is_wide_bar(uint32_t low)
{
	return is_memory_bar(low) && (low & BAR_TYPE) == BAR_64BIT;
}

static uint64_t bar_address(const struct pci_function *function, unsigned index)
{
	uint32_t low = pci_read32(function, BAR0 + 4 * index);
	uint64_t address = low & BAR_ADDRESS;

	if (is_wide_bar(low))
		address |= (uint64_t)pci_read32(function, BAR0 + 4 * index + 4) << 32;
	return address;
}

/* Sizes a memory BAR by writing all ones (PCI 3.0, 6.2.5.1), with decoding off meanwhile. 0: no such BAR. */
static uint64_t bar_size(const struct pci_function *function, unsigned index)
{
	unsigned offset = BAR0 + 4 * index;
	uint16_t command = pci_read16(function, COMMAND);
	uint32_t low = pci_read32(function, offset);

	if (!is_memory_bar(low))
		return 0;
	pci_write16(function, COMMAND, command & (uint16_t)~COMMAND_MEMORY);
	pci_write32(function, offset, 0xffffffff);
	uint64_t mask = 0xffffffff00000000 | (pci_read32(function, offset) & BAR_ADDRESS);
	bool absent = !(mask & BAR_ADDRESS);

	pci_write32(function, offset, low);
	if (is_wide_bar(low)) {
		uint32_t high = pci_read32(function, offset + 4);

		pci_write32(function, offset + 4, 0xffffffff);
		mask = (uint64_t)pci_read32(function, offset + 4) << 32 | (mask & 0xffffffff);
		absent = !mask;
		pci_write32(function, offset + 4, high);
	}
	pci_write16(function, COMMAND, command);
	return absent ? 0 : ~mask + 1;
}

uint64_t pci_bar(const struct pci_function *function, unsigned index, uint64_t *size)
{
	*size = index < BAR_COUNT ? bar_size(function, index) : 0;
	if (!*size)
		panic("PCI device %x on bus 0 has no memory BAR %u", function->slot >> 3, index);
	return bar_address(function, index);
}

/* The end of the highest BAR that lies in the window, over all functions: free space starts there. */
static uint64_t window_used(void)
{
	struct pci_function function;
	uint64_t used = WINDOW_START;

	for (unsigned slot = 0; next_function(&function, &slot); slot++) {
		if (pci_read8(&function, HEADER_TYPE) & 0x7f)
			continue; /* a bridge: its BARs are elsewhere, and nothing here needs it */
		for (unsigned i = 0; i < BAR_COUNT; i++) {
			uint64_t size = bar_size(&function, i), address = bar_address(&function, i);

			if (size && address >= WINDOW_START && address < WINDOW_END && address + size > used)
				used = address + size;
			if (is_wide_bar(pci_read32(&function, BAR0 + 4 * i)))
				i++;
		}
	}
	return used;
}

static void place_bar(const struct pci_function *function, unsigned index, uint64_t size)
{
	uint64_t address = (window_used() + size - 1) & -size;

	if (address + size > WINDOW_END)
		panic("no room for BAR %u of PCI device %x: it wants 0x%lx bytes", index, function->slot >> 3, size);
	uint32_t low = pci_read32(function, BAR0 + 4 * index);

	pci_write32(function, BAR0 + 4 * index, (uint32_t)address);
	if (is_wide_bar(low))
		pci_write32(function, BAR0 + 4 * index + 4, 0);
}

void pci_enable(const struct pci_function *function)
{
	for (unsigned i = 0; i < BAR_COUNT; i++) {
		uint64_t size = bar_size(function, i);

		if (size && !bar_address(function, i))
			place_bar(function, i, size);
		if (is_wide_bar(pci_read32(function, BAR0 + 4 * i)))
			i++;
	}
	pci_write16(function, COMMAND, pci_read16(function, COMMAND) | COMMAND_MEMORY | COMMAND_MASTER);
}

bool pci_msix_enable(struct pci_function *function)
{
	function->msix = (uint8_t)pci_next_capability(function, CAPABILITY_MSIX, 0);
	if (!function->msix)
		return false;
	uint16_t control = pci_read16(function, function->msix + MSIX_CONTROL);

	control = (uint16_t)((control | MSIX_ENABLE) & ~MSIX_MASK_ALL);
	pci_write16(function, function->msix + MSIX_CONTROL, control);
	return true;
}

void pci_msix_route(const struct pci_function *function, unsigned entry, unsigned message)
{
	uint16_t control = pci_read16(function, function->msix + MSIX_CONTROL);
	uint32_t table = pci_read32(function, function->msix + MSIX_TABLE);
	uint64_t size, offset = (table & ~7u) + (uint64_t)entry * MSIX_ENTRY_SIZE;
	uint64_t bar = pci_bar(function, table & 7, &size);

	if (entry > (control & MSIX_TABLE_SIZE) || offset + MSIX_ENTRY_SIZE > size)
		panic("PCI device %x has no MSI-X table entry %u", function->slot >> 3, entry);
	memory_map_device(bar + offset, MSIX_ENTRY_SIZE);

	volatile uint8_t *p = (volatile uint8_t *)(bar + offset);

	mmio_write32(p + 0, irq_message_address());
	mmio_write32(p + 4, 0);
	mmio_write32(p + 8, irq_message_data(message));
	mmio_write32(p + 12, 0); /* unmasked */
}

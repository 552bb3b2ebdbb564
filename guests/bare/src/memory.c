#include "memory.h"

#include "cpu.h"
#include "power.h"
#include "text.h"

/* Xen's public/arch-x86/hvm/start_info.h, version 1. */
struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t module_count;
	uint64_t modules;
	uint64_t command_line;
	uint64_t rsdp;
	uint64_t memory_map; /* from version 1 on */
	uint32_t memory_map_entries;
	uint32_t reserved;
};

struct memory_map_entry {
	uint64_t address;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

enum {
	START_INFO_MAGIC = 0x336ec578,
	MEMORY_RAM = 1,
};

#define ENTRY_PRESENT_WRITABLE_USER 0x07ul
#define ENTRY_UNCACHED 0x18ul
#define ENTRY_LARGE 0x80ul
#define ENTRY_ADDRESS 0x000ffffffffff000ul

#define LARGE_PAGE (2ul << 20)
#define STATIC_MAP_END (4ul << 30)   /* start.S maps what lies below */
#define MAPPABLE_END (1ul << 47)     /* the lower canonical half */

extern const uint32_t start_info_address;
extern uint64_t page_map_level4[512];
extern const uint8_t image_end[];

static char command_line[COMMAND_LINE_MAX];
static struct span free_spans[SPANS_MAX];
static unsigned free_span_count;

static void copy_command_line(uint64_t address)
{
	const char *from = (const char *)address;
	size_t n = 0;

	if (!address)
		return;
	while (from[n]) {
		if (n == COMMAND_LINE_MAX - 1)
			panic("the command line is longer than %u bytes", COMMAND_LINE_MAX - 1);
		command_line[n] = from[n];
		n++;
	}
}

/* Keeps the RAM of a map entry that lies above the image, in whole pages. Low memory below it isn't worth having. */
static void add_ram(uint64_t address, uint64_t size)
{
	uint64_t start = address, end = address + size;

	if (end < start || end > MAPPABLE_END)
		panic("the memory map has RAM at 0x%lx of 0x%lx bytes", address, size);
	if (start < (uint64_t)image_end)
		start = (uint64_t)image_end;
	start = (start + PAGE_SIZE - 1) & -PAGE_SIZE;
	end &= -PAGE_SIZE;
	if (start >= end)
		return;
	if (free_span_count == SPANS_MAX)
		panic("the memory map has more than %u RAM areas", SPANS_MAX);
	free_spans[free_span_count++] = (struct span){start, (end - start) / PAGE_SIZE};
}

/* Takes one zeroed page for a page table; these have to lie where the static map reaches. */
static uint64_t *take_table(void)
{
	for (unsigned i = 0; i < free_span_count; i++) {
		struct span *span = &free_spans[i];
		uint64_t last = span->address + (span->pages - 1) * PAGE_SIZE;

		if (span->pages && last < STATIC_MAP_END) {
			span->pages--;
			return memset((void *)last, 0, PAGE_SIZE);
		}
	}
	panic("no memory below 4 GiB for page tables");
}

static uint64_t *next_table(uint64_t *entry)
{
	if (!*entry)
		*entry = (uint64_t)take_table() | ENTRY_PRESENT_WRITABLE_USER;
	return (uint64_t *)(*entry & ENTRY_ADDRESS);
}

/*
 * Identity maps [address, address + size) in 2 MiB pages. An entry that goes from absent to present needs no
 * invalidation (Intel SDM vol. 3, 4.10.4.3), and so all of it can be done from ring 3.
 */
static void map(uint64_t address, uint64_t size, uint64_t attributes)
{
	if (size > MAPPABLE_END || address > MAPPABLE_END - size)
		panic("0x%lx bytes at 0x%lx are out of reach of the page tables", size, address);
	for (uint64_t at = address & -LARGE_PAGE; at < address + size; at += LARGE_PAGE) {
		uint64_t *pointers = next_table(&page_map_level4[at >> 39 & 511]);
		uint64_t *directory = next_table(&pointers[at >> 30 & 511]);
		uint64_t *entry = &directory[at >> 21 & 511];

		if (!*entry)
			*entry = at | attributes | ENTRY_PRESENT_WRITABLE_USER | ENTRY_LARGE;
	}
}

void memory_init(void)
{
	const struct start_info *info = (const void *)(uintptr_t)start_info_address;

	if (info->magic != START_INFO_MAGIC)
		panic("no PVH start info at 0x%x: magic 0x%x", start_info_address, info->magic);
	if (info->version < 1 || !info->memory_map)
		panic("the PVH start info (version %u) has no memory map", info->version);
	copy_command_line(info->command_line);

	const struct memory_map_entry *entries = (const void *)info->memory_map;

	for (uint32_t i = 0; i < info->memory_map_entries; i++)
		if (entries[i].type == MEMORY_RAM)
			add_ram(entries[i].address, entries[i].size);
	for (unsigned i = 0; i < free_span_count; i++)
		map(free_spans[i].address, free_spans[i].pages * PAGE_SIZE, 0);
}

const char *memory_command_line(void)
{
	return command_line;
}

uint64_t memory_free_pages(void)
{
	uint64_t pages = 0;

	for (unsigned i = 0; i < free_span_count; i++)
		pages += free_spans[i].pages;
	return pages;
}

unsigned memory_take(uint64_t n, struct span spans[SPANS_MAX])
{
	unsigned count = 0;

	if (n > memory_free_pages())
		panic("%lu pages of memory are wanted, %lu are free", n, memory_free_pages());
	for (unsigned i = 0; n > 0; i++) {
		struct span *from = &free_spans[i];
		uint64_t pages = from->pages < n ? from->pages : n;

		if (!pages)
			continue;
		spans[count++] = (struct span){from->address, pages};
		from->address += pages * PAGE_SIZE;
		from->pages -= pages;
		n -= pages;
	}
	return count;
}

void memory_map_device(uint64_t address, uint64_t size)
{
	map(address, size, ENTRY_UNCACHED);
}

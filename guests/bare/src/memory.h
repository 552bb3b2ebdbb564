/* What the PVH loader handed over: the command line and physical memory. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdint.h>

enum { COMMAND_LINE_MAX = 2048 };

/* A run of physical (and, identity mapped, virtual) memory in whole pages. */
struct span {
	uint64_t address;
	uint64_t pages;
};

enum { SPANS_MAX = 16 };

/*
 * Reads the start info, copies the command line, and maps all RAM. Panics when there is no memory map (start info
 * version 0). What the loader left in memory may be overwritten afterwards.
 */
void memory_init(void);

const char *memory_command_line(void);

/* Pages of RAM that nobody has taken. */
uint64_t memory_free_pages(void);

/* Takes n pages out of free memory, as at most SPANS_MAX spans; returns their number. Panics when there are too few. */
unsigned memory_take(uint64_t n, struct span spans[SPANS_MAX]);

/* Makes a device's registers accessible (they are already, below 4 GiB). */
void memory_map_device(uint64_t address, uint64_t size);

#endif

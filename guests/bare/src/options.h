/* The command line: space-separated key=value words. doc.go of the Go package bare describes every key. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/* Bits of options.modes. */
enum {
	MODE_IDLE = 1 << 0,
	MODE_DIRTY = 1 << 1,
	MODE_SERVE = 1 << 2,
	MODE_BLOCK = 1 << 3,
	MODE_COMPUTE = 1 << 4,
};

enum pattern { PATTERN_COUNTER, PATTERN_RANDOM, PATTERN_ZERO };
enum page_order { ORDER_LINEAR, ORDER_SCATTERED };
enum disk_mode { DISK_WRITE, DISK_CHECK };

struct options {
	unsigned modes;
	bool poll_devices; /* irq=poll */
	uint64_t seed;

	/* mode=dirty */
	uint64_t working_set; /* pages */
	uint64_t dirty_rate;  /* pages a second, 0 unlimited */
	uint64_t check_rate;  /* pages a second checked besides those about to be written */
	uint64_t lose;        /* this write is left out, to prove that the check sees it; 0 none */
	enum pattern pattern;
	enum page_order order;

	/* mode=serve */
	uint32_t address, gateway; /* IPv4, host byte order; gateway 0: none */
	unsigned prefix;
	uint16_t port;

	/* mode=block */
	uint64_t blocks, block_rate, depth, flush_every, first_round;
	enum disk_mode disk_mode;

	/* When to power off; 0 never. */
	uint64_t until_lines, until_pages, until_answers, until_rounds;
};

/* Parses a command line over the defaults; panics, naming the word, when it can't be understood. */
void options_parse(struct options *options, const char *line);

#endif

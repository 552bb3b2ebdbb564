/*
 * Dirties memory at a pace, and checks it.
 *
 * Write number n (from 0) goes to place n % ws of the working set and carries the round n / ws + 1. So n alone says what
 * every page must hold: nothing else is remembered, and a page that a restore or a takeover lost, tore or brought back
 * from another time can't agree with it by chance. A page is checked before it is overwritten, and all pages in turn
 * at checkrate.
 */
#include "cpu.h"
#include "memory.h"
#include "power.h"
#include "random.h"
#include "text.h"
#include "work.h"

enum {
	WORDS = PAGE_SIZE / sizeof(uint64_t),
	BATCH = 128, /* pages a step */
};

static struct span spans[SPANS_MAX];
static unsigned span_count;

static uint64_t pages, seed, stride, lose;
static enum pattern pattern;
static struct pacer write_pace, check_pace;

static uint64_t written;       /* writes so far: the n of the next one */
static uint64_t checked;       /* pages checked so far, in both ways */
static uint64_t check_cursor;  /* the place to check next */

static uint64_t *page_at(uint64_t number)
{
	for (unsigned i = 0; i < span_count; i++) {
		if (number < spans[i].pages)
			return (uint64_t *)(spans[i].address + number * PAGE_SIZE);
		number -= spans[i].pages;
	}
	panic("page %lu is not in the working set", number);
}

/* The page at a place in the order of writing. */
static uint64_t page_number(uint64_t place)
{
	return place * stride % pages; /* below 2^64: both are at most 2^31 (dirty_init) */
}

/* The word at an index of a page's content in a round. */
static inline uint64_t content(uint64_t page, uint64_t round, unsigned index)
{
	return random_at(seed ^ random_mix(page) ^ round * RANDOM_STEP, index);
}

/* Only even rounds of pattern=zero leave nothing but zeroes: odd ones show that the page is alive. */
static inline bool is_zero_round(uint64_t round)
{
	return pattern == PATTERN_ZERO && round % 2 == 0;
}

static void write_page(uint64_t page, uint64_t round)
{
	volatile uint64_t *words = page_at(page);

	switch (pattern) {
	case PATTERN_COUNTER:
		words[0] = round;
		words[1] = page;
		words[WORDS - 1] = round;
		break;
	case PATTERN_RANDOM:
		for (unsigned i = 0; i < WORDS; i++)
			words[i] = content(page, round, i);
		break;
	case PATTERN_ZERO:
		for (unsigned i = 0; i < WORDS; i++)
			words[i] = is_zero_round(round) ? 0 : round;
		break;
	}
}

static void expect_word(uint64_t page, uint64_t round, unsigned index, uint64_t want)
{
	uint64_t *words = page_at(page);

	if (((volatile uint64_t *)words)[index] != want)
		panic("memory: page %lu at 0x%lx, word %u: holds 0x%lx, want 0x%lx (round %lu, %lu pages written)", page,
		      (uint64_t)words, index, words[index], want, round, written);
}

static void check_page(uint64_t page, uint64_t round)
{
	switch (pattern) {
	case PATTERN_COUNTER:
		expect_word(page, round, 0, round);
		expect_word(page, round, 1, page);
		expect_word(page, round, WORDS - 1, round);
		break;
	case PATTERN_RANDOM:
		for (unsigned i = 0; i < WORDS; i++)
			expect_word(page, round, i, content(page, round, i));
		break;
	case PATTERN_ZERO:
		for (unsigned i = 0; i < WORDS; i++)
			expect_word(page, round, i, is_zero_round(round) ? 0 : round);
		break;
	}
	checked++;
}

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* A step through the working set that visits every page once a round: coprime to their number. */
static uint64_t choose_stride(enum page_order order)
{
	uint64_t step = pages * 5 / 8 | 1; /* near the golden ratio, so that neighbours in time lie far apart */

	if (order == ORDER_LINEAR)
		return 1;
	while (greatest_common_divisor(step, pages) != 1)
		step++;
	return step % pages ? step % pages : 1;
}

void dirty_init(const struct options *options)
{
	static const char *const names[] = {"counter", "random", "zero"};

	pages = options->working_set;
	if (pages > 1ull << 31)
		panic("option ws=%lu: more than the 2147483648 pages that the dirtier can count", pages);
	span_count = memory_take(pages, spans);
	seed = options->seed;
	lose = options->lose;
	pattern = options->pattern;
	stride = choose_stride(options->order);
	pacer_init(&write_pace, options->dirty_rate);
	pacer_init(&check_pace, options->check_rate);
	print_line("dirty: ws=%lu rate=%lu pattern=%s stride=%lu", pages, options->dirty_rate, names[pattern], stride);
}

static void write_next(void)
{
	uint64_t page = page_number(written % pages), round = written / pages + 1;

	if (round > 1)
		check_page(page, round - 1);
	if (written + 1 != lose)
		write_page(page, round);
	written++;
}

static void check_next(void)
{
	uint64_t round = written / pages + (check_cursor < written % pages);

	if (round > 0)
		check_page(page_number(check_cursor), round);
	check_cursor = (check_cursor + 1) % pages;
}

bool dirty_step(uint64_t now)
{
	uint64_t writes = pacer_allows(&write_pace, now, BATCH);

	for (uint64_t i = 0; i < writes; i++)
		write_next();
	pacer_spend(&write_pace, writes);

	/* Checking fills gaps: checkrate=0 means none of it, not all that the CPU gives. */
	uint64_t checks = check_pace.rate ? pacer_allows(&check_pace, now, BATCH) : 0;

	for (uint64_t i = 0; i < checks; i++)
		check_next();
	pacer_spend(&check_pace, checks);
	return writes == BATCH || checks == BATCH;
}

uint64_t dirty_pages_written(void)
{
	return written;
}

void dirty_report(struct line *line)
{
	line_append(line, " dirtied=%lu verified=%lu", written, checked);
}

/*
 * Writes a disk over and over, and checks it.
 *
 * A block describes itself: what it is, for which seed, block number and round, then words that follow from these.
 * disk=write runs rounds: write all blocks, flush, read all of them back and compare. disk=check reads what an earlier
 * start has left: every block is whole, and of round r or r-1 when that start ended in round r.
 */
#include "cpu.h"
#include "disk.h"
#include "power.h"
#include "random.h"
#include "text.h"
#include "work.h"

enum {
	WORDS = DISK_BLOCK / sizeof(uint64_t),
	AT_MAGIC = 0,
	AT_SEED = 1,
	AT_BLOCK = 2,
	AT_ROUND = 3,
	HEADER_WORDS = 4,
	BATCH = 32, /* requests started a step */
};

#define MAGIC 0x4b434f4c42584c50ull /* "PLXBLOCK" */

enum phase { WRITING, FLUSHING, READING, CHECKING, FINISHED };

static uint64_t blocks, depth, seed, flush_every;
static struct pacer pace;

static enum phase phase;
static uint64_t next;           /* the block to start next in this phase */
static uint64_t in_flight;
static uint64_t since_flush;    /* writes started since the last flush */
static uint64_t round;
static uint64_t written, flushed, verified, rounds_done;
static uint64_t lowest, highest, unwritten; /* of disk=check */

static uint64_t fill_word(uint64_t block, uint64_t of_round, unsigned index)
{
	return random_at(seed ^ random_mix(block) ^ of_round * RANDOM_STEP, index);
}

static void fill(uint64_t *words, uint64_t block)
{
	words[AT_MAGIC] = MAGIC;
	words[AT_SEED] = seed;
	words[AT_BLOCK] = block;
	words[AT_ROUND] = round;
	for (unsigned i = HEADER_WORDS; i < WORDS; i++)
		words[i] = fill_word(block, round, i);
}

/* Panics unless the buffer is this block as some round wrote it; returns the round. */
static uint64_t verify_content(const uint64_t *words, uint64_t block)
{
	uint64_t of_round = words[AT_ROUND];

	if (words[AT_MAGIC] != MAGIC || words[AT_SEED] != seed || words[AT_BLOCK] != block)
		panic("disk: block %lu is not what was written: magic 0x%lx, seed %lu, block %lu, round %lu", block,
		      words[AT_MAGIC], words[AT_SEED], words[AT_BLOCK], of_round);
	for (unsigned i = HEADER_WORDS; i < WORDS; i++)
		if (words[i] != fill_word(block, of_round, i))
			panic("disk: block %lu of round %lu is torn or altered at byte %lu", block, of_round,
			      i * sizeof(uint64_t));
	return of_round;
}

static bool is_zero(const uint64_t *words)
{
	for (unsigned i = 0; i < WORDS; i++)
		if (words[i])
			return false;
	return true;
}

void blocks_init(const struct options *options)
{
	blocks = options->blocks;
	depth = options->depth;
	seed = options->seed;
	flush_every = options->flush_every;
	pacer_init(&pace, options->block_rate);
	disk_init(options->poll_devices);
	print_line("disk: capacity=%lu blocks=%lu depth=%lu read_only=%s irq=%s", disk_blocks(), blocks, depth,
		   disk_is_read_only() ? "yes" : "no", disk_is_polled() ? "poll" : "msix");
	if (blocks > disk_blocks())
		panic("option blocks=%lu: the disk has %lu blocks of %u bytes", blocks, disk_blocks(), DISK_BLOCK);
	if (options->disk_mode == DISK_CHECK) {
		phase = CHECKING;
		lowest = UINT64_MAX;
		return;
	}
	if (disk_is_read_only())
		panic("disk=write: the disk is read-only");
	phase = WRITING;
	round = options->first_round;
}

static void complete(unsigned slot, enum disk_request request, uint64_t block)
{
	const uint64_t *words = disk_buffer(slot);
	uint64_t of_round;

	in_flight--;
	switch (request) {
	case DISK_WRITE_OUT:
		written++;
		return;
	case DISK_FLUSH:
		flushed++;
		return;
	case DISK_READ:
		break;
	}
	if (phase == CHECKING && is_zero(words)) {
		unwritten++;
		return;
	}
	of_round = verify_content(words, block);
	verified++;
	if (phase == READING && of_round != round)
		panic("disk: block %lu is of round %lu, not %lu: a write was lost", block, of_round, round);
	if (of_round < lowest)
		lowest = of_round;
	if (of_round > highest)
		highest = of_round;
}

static void start(enum disk_request request, uint64_t block)
{
	int slot = disk_free_slot();

	if (slot < 0)
		panic("disk: no free slot with %lu requests in flight", in_flight);
	if (request == DISK_WRITE_OUT)
		fill(disk_buffer((unsigned)slot), block);
	disk_start((unsigned)slot, request, block);
	in_flight++;
}

/* Starts what the phase has to do next. False when it has nothing more to start. */
static bool start_next(void)
{
	if (phase == FLUSHING || phase == FINISHED)
		return false;
	/* Flushes run beside the writes that follow, as a file system's would. */
	if (phase == WRITING && flush_every && since_flush >= flush_every) {
		since_flush = 0;
		start(DISK_FLUSH, 0);
		return true;
	}
	if (next == blocks)
		return false;
	if (phase == WRITING)
		since_flush++;
	start(phase == WRITING ? DISK_WRITE_OUT : DISK_READ, next++);
	return true;
}

static void finish_check(void)
{
	if (verified && highest - lowest > 1)
		panic("disk: blocks are of rounds %lu to %lu: more than one round apart", lowest, highest);
	if (unwritten && highest > 1)
		panic("disk: %lu blocks were never written, but round %lu has been", unwritten, highest);
	print_line("disk: checked blocks=%lu valid=%lu unwritten=%lu lowest=%lu highest=%lu", blocks, verified, unwritten,
		   verified ? lowest : 0, highest);
	rounds_done++;
}

/* The phase is over when everything is started and answered: what comes next? */
static void next_phase(void)
{
	next = 0;
	switch (phase) {
	case WRITING:
		phase = FLUSHING;
		since_flush = 0;
		start(DISK_FLUSH, 0);
		return;
	case FLUSHING:
		phase = READING;
		return;
	case READING:
		phase = WRITING;
		round++;
		rounds_done++;
		return;
	case CHECKING:
		finish_check();
		phase = FINISHED;
		return;
	case FINISHED:
		return;
	}
}

bool blocks_step(uint64_t now)
{
	unsigned slot;
	enum disk_request request;
	uint64_t block, allowed, started = 0;

	while (disk_complete(&slot, &request, &block))
		complete(slot, request, block);
	allowed = pacer_allows(&pace, now, BATCH);
	while (in_flight < depth && started < allowed && start_next())
		started++;
	pacer_spend(&pace, started);
	bool over = !in_flight && phase != FINISHED && (next == blocks || phase == FLUSHING);

	if (over)
		next_phase();
	disk_submit();
	return over || (disk_is_polled() && in_flight);
}

uint64_t blocks_rounds(void)
{
	return rounds_done;
}

void blocks_report(struct line *line)
{
	disk_check_health();
	line_append(line, " blocks_written=%lu flushes=%lu blocks_verified=%lu rounds=%lu", written, flushed, verified,
		    rounds_done);
}

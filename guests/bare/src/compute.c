/* Counts turns of a loop that touches nothing but registers: how much CPU the guest really gets. */
#include "random.h"
#include "work.h"

enum { TURNS = 65536 }; /* a step: some 0.1 ms */

static uint64_t turns, value;

void compute_init(const struct options *options)
{
	value = options->seed;
}

bool compute_step(uint64_t now)
{
	uint64_t x = value;

	(void)now;
	for (unsigned i = 0; i < TURNS; i++)
		x = random_mix(x + RANDOM_STEP);
	value = x;
	turns += TURNS;
	return true;
}

void compute_report(struct line *line)
{
	line_append(line, " computed=%lu", turns);
}

#include "work.h"

#define NS_PER_SECOND 1000000000ull

void pacer_init(struct pacer *pacer, uint64_t rate)
{
	*pacer = (struct pacer){.rate = rate};
}

uint64_t pacer_allows(struct pacer *pacer, uint64_t now, uint64_t at_most)
{
	uint64_t elapsed = now - pacer->now, most = pacer->rate / 10 + 1;

	if (!pacer->rate)
		return at_most;
	if (elapsed > NS_PER_SECOND)
		elapsed = NS_PER_SECOND;
	pacer->now = now;
	/* Rates are below 2^30 (options.c) and so is elapsed: no overflow. */
	uint64_t earned = elapsed * pacer->rate + pacer->carry;

	pacer->allowed += earned / NS_PER_SECOND;
	pacer->carry = earned % NS_PER_SECOND;
	if (pacer->allowed > most)
		pacer->allowed = most;
	return pacer->allowed < at_most ? pacer->allowed : at_most;
}

void pacer_spend(struct pacer *pacer, uint64_t units)
{
	if (pacer->rate)
		pacer->allowed -= units;
}

/* Seeded pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014), whose n-th number needs no state but n. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stdint.h>

#define RANDOM_STEP 0x9e3779b97f4a7c15ull

static inline uint64_t random_mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

/* The n-th number of the sequence that starts at seed. */
static inline uint64_t random_at(uint64_t seed, uint64_t n)
{
	return random_mix(seed + (n + 1) * RANDOM_STEP);
}

#endif

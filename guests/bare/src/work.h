/*
 * The work that a command line can ask for. Each kind has the same three entry points: init once, step over and over
 * (a bounded amount of work; true when there is more to do right now), and report, which appends " key=value" fields
 * to the progress line.
 */
#ifndef WORK_H
#define WORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "options.h"

/* A line under construction; append never overruns it. */
struct line {
	char text[480];
	size_t length;
};

void line_append(struct line *line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void dirty_init(const struct options *options);
bool dirty_step(uint64_t now);
void dirty_report(struct line *line);
uint64_t dirty_pages_written(void);

void serve_init(const struct options *options);
bool serve_step(uint64_t now);
void serve_report(struct line *line);
uint64_t serve_answers(void);

void blocks_init(const struct options *options);
bool blocks_step(uint64_t now);
void blocks_report(struct line *line);
uint64_t blocks_rounds(void);

void compute_init(const struct options *options);
bool compute_step(uint64_t now);
void compute_report(struct line *line);

/*
 * Paces work to a rate: pacer_allows says how many units may be done now, up to at_most, and pacer_spend what was done.
 * What was not done in time is caught up, but no more than a tenth of a second's worth, so that a pause is not followed
 * by a storm.
 */
struct pacer {
	uint64_t rate;    /* units a second, 0 unlimited */
	uint64_t now;     /* when allowance was last raised */
	uint64_t allowed; /* units */
	uint64_t carry;   /* a fraction of a unit, in units times ns per second; below one unit */
};

void pacer_init(struct pacer *pacer, uint64_t rate);
uint64_t pacer_allows(struct pacer *pacer, uint64_t now, uint64_t at_most);
void pacer_spend(struct pacer *pacer, uint64_t units);

#endif

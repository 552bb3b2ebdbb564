/* The guest's life in ring 3: set up, work by turns, report once a second, end when asked to. */
#include "cpu.h"
#include "irq.h"
#include "memory.h"
#include "options.h"
#include "power.h"
#include "text.h"
#include "work.h"

#define NS_PER_SECOND 1000000000ull

_Noreturn void guest_main(void);

/* One kind of work, as the table below lists them. */
struct work {
	unsigned mode;
	void (*init)(const struct options *options);
	bool (*step)(uint64_t now);
	void (*report)(struct line *line);
	uint64_t (*progress)(void); /* what its limit counts; NULL: it has none */
};

static const struct work works[] = {
	{MODE_DIRTY, dirty_init, dirty_step, dirty_report, dirty_pages_written},
	{MODE_SERVE, serve_init, serve_step, serve_report, serve_answers},
	{MODE_BLOCK, blocks_init, blocks_step, blocks_report, blocks_rounds},
	{MODE_COMPUTE, compute_init, compute_step, compute_report, NULL},
};

static struct options options;

void line_append(struct line *line, const char *fmt, ...)
{
	va_list arguments;

	va_start(arguments, fmt);
	line->length +=
		format_arguments(line->text + line->length, sizeof(line->text) - line->length, fmt, arguments);
	va_end(arguments);
}

static bool active(const struct work *work)
{
	return options.modes & work->mode;
}

static void set_up(void)
{
	serial_init();
	memory_init();
	options_parse(&options, memory_command_line());
	irq_init();
	clock_init();
	print_line("bare: memory=%lu pages free, tsc=%lu kHz, command line \"%s\"", memory_free_pages(),
		   clock_tsc_hz() / 1000, memory_command_line());
	for (unsigned i = 0; i < COUNT_OF(works); i++)
		if (active(&works[i]))
			works[i].init(&options);
	print_line("ready");
}

static bool step_all(uint64_t now)
{
	bool more = false;

	for (unsigned i = 0; i < COUNT_OF(works); i++)
		if (active(&works[i]))
			more |= works[i].step(now);
	return more;
}

static void report(uint64_t number, uint64_t now)
{
	struct line line = {.length = 0};

	line_append(&line, "tick=%lu ms=%lu", number, now / 1000000);
	for (unsigned i = 0; i < COUNT_OF(works); i++)
		if (active(&works[i]))
			works[i].report(&line);
	line_append(&line, " irqs=%lu", irq_total());
	print_line("%s", line.text);
}

/* Whether one of the limits that the command line sets is reached. */
static bool is_done(uint64_t lines)
{
	const uint64_t limits[] = {options.until_pages, options.until_answers, options.until_rounds, 0};

	if (options.until_lines && lines >= options.until_lines)
		return true;
	for (unsigned i = 0; i < COUNT_OF(works); i++)
		if (active(&works[i]) && limits[i] && works[i].progress() >= limits[i])
			return true;
	return false;
}

_Noreturn void guest_main(void)
{
	uint64_t lines = 0;

	set_up();
	uint64_t next_report = clock_now() + NS_PER_SECOND;

	for (;;) {
		/* Cleared before looking for work: an interrupt from here on makes cpu_idle return at once. */
		irq_pending = 0;
		compiler_barrier();

		uint64_t now = clock_now();
		bool more = step_all(now);

		bool reported = now >= next_report;

		if (reported) {
			report(++lines, now);
			next_report += NS_PER_SECOND;
			if (next_report <= now) /* the clock was ahead by more than a line: don't print them all */
				next_report = now + NS_PER_SECOND;
		}
		if (is_done(lines)) {
			if (!reported)
				report(++lines, now);
			print_line("done");
			power_off();
		}
		if (!more)
			cpu_idle();
	}
}

#include "options.h"

#include "cpu.h"
#include "power.h"
#include "text.h"

/* One word of the command line; key and value are cut out of it. */
struct word {
	char key[32];
	char value[96];
};

static _Noreturn void bad(const struct word *word, const char *wanted)
{
	panic("option %s=%s: want %s", word->key, word->value, wanted);
}

/* Parses digits up to the end or to a stop character, which it returns the place of. NULL: not a number below 2^64. */
static const char *parse_digits(const char *p, uint64_t *value)
{
	const char *start = p;

	for (*value = 0; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(*value, 10, value) ||
		    __builtin_add_overflow(*value, (uint64_t)(*p - '0'), value))
			return NULL;
	return p == start ? NULL : p;
}

static uint64_t parse_number(const struct word *word, uint64_t lowest, uint64_t highest)
{
	uint64_t value;
	const char *end = parse_digits(word->value, &value);

	if (!end || *end || value < lowest || value > highest)
		panic("option %s=%s: want a number from %lu to %lu", word->key, word->value, lowest, highest);
	return value;
}

/* Parses an IPv4 address, with "/prefix" when prefix isn't NULL. */
static uint32_t parse_address(const struct word *word, unsigned *prefix)
{
	const char *wanted = prefix ? "an address like 10.0.0.2/24" : "an address like 10.0.0.1";
	const char *p = word->value;
	uint32_t address = 0;
	uint64_t part;

	for (unsigned i = 0; i < 4; i++) {
		p = parse_digits(p, &part);
		if (!p || part > 255 || (i < 3 && *p++ != '.'))
			bad(word, wanted);
		address = address << 8 | (uint32_t)part;
	}
	if (prefix && *p == '/') {
		p = parse_digits(p + 1, &part);
		if (!p || part > 32)
			bad(word, wanted);
		*prefix = (unsigned)part;
	}
	if (*p)
		bad(word, wanted);
	return address;
}

static unsigned parse_choice(const struct word *word, const char *const names[], unsigned count, const char *wanted)
{
	for (unsigned i = 0; i < count; i++)
		if (string_equal(word->value, names[i]))
			return i;
	bad(word, wanted);
}

/* Several modes are joined with '+'. */
static unsigned parse_modes(const struct word *word)
{
	static const char *const names[] = {"idle", "dirty", "serve", "block", "compute"};
	const char *wanted = "idle, dirty, serve, block and compute, joined with +";
	struct word one = *word;
	unsigned modes = 0;

	for (const char *p = word->value;;) {
		size_t n = 0;

		for (; *p && *p != '+'; p++)
			one.value[n++] = *p;
		one.value[n] = 0;
		modes |= 1u << parse_choice(&one, names, COUNT_OF(names), wanted);
		if (!*p++)
			return modes;
	}
}

/* An option whose value is a number from lowest up to highest. */
struct number_option {
	const char *key;
	uint64_t *value;
	uint64_t lowest, highest;
};

static bool set_number(struct options *o, const struct word *word)
{
	const uint64_t any = UINT64_MAX, sane = 1ull << 40, rate = 1000000000;
	const struct number_option numbers[] = {
		{"ws", &o->working_set, 1, sane},     {"rate", &o->dirty_rate, 0, rate},
		{"checkrate", &o->check_rate, 0, rate}, {"lose", &o->lose, 0, any},
		{"blocks", &o->blocks, 1, sane},      {"blockrate", &o->block_rate, 0, rate},
		{"depth", &o->depth, 1, 16},          {"flush", &o->flush_every, 0, sane},
		{"round", &o->first_round, 1, sane},  {"seed", &o->seed, 0, any},
		{"count", &o->until_lines, 0, any},   {"pages", &o->until_pages, 0, any},
		{"answers", &o->until_answers, 0, any}, {"rounds", &o->until_rounds, 0, any},
	};

	for (unsigned i = 0; i < COUNT_OF(numbers); i++) {
		const struct number_option *number = &numbers[i];

		if (string_equal(word->key, number->key)) {
			*number->value = parse_number(word, number->lowest, number->highest);
			return true;
		}
	}
	return false;
}

static void set_option(struct options *o, const struct word *word)
{
	static const char *const patterns[] = {"counter", "random", "zero"};
	static const char *const orders[] = {"linear", "scattered"};
	static const char *const interrupts[] = {"msix", "poll"};
	static const char *const disk_modes[] = {"write", "check"};

	if (set_number(o, word))
		return;
	if (string_equal(word->key, "mode"))
		o->modes = parse_modes(word);
	else if (string_equal(word->key, "pattern"))
		o->pattern = parse_choice(word, patterns, COUNT_OF(patterns), "counter, random or zero");
	else if (string_equal(word->key, "order"))
		o->order = parse_choice(word, orders, COUNT_OF(orders), "linear or scattered");
	else if (string_equal(word->key, "irq"))
		o->poll_devices = parse_choice(word, interrupts, COUNT_OF(interrupts), "msix or poll");
	else if (string_equal(word->key, "disk"))
		o->disk_mode = parse_choice(word, disk_modes, COUNT_OF(disk_modes), "write or check");
	else if (string_equal(word->key, "ip"))
		o->address = parse_address(word, &o->prefix);
	else if (string_equal(word->key, "gw"))
		o->gateway = parse_address(word, NULL);
	else if (string_equal(word->key, "port"))
		o->port = (uint16_t)parse_number(word, 1, 65535);
	else
		panic("option %s=%s is not known", word->key, word->value);
}

/* Cuts the next word out of the line at *p and moves past it. False at the end. */
static bool next_word(const char **p, struct word *word)
{
	size_t n = 0;

	while (**p == ' ' || **p == '\t' || **p == '\n')
		++*p;
	if (!**p)
		return false;
	for (; **p && **p != ' ' && **p != '\t' && **p != '\n' && **p != '='; ++*p)
		if (n < sizeof(word->key) - 1)
			word->key[n++] = **p;
	word->key[n] = 0;
	if (**p != '=')
		panic("option %s: want key=value", word->key);
	++*p;
	for (n = 0; **p && **p != ' ' && **p != '\t' && **p != '\n'; ++*p) {
		if (n == sizeof(word->value) - 1)
			panic("option %s: its value is too long", word->key);
		word->value[n++] = **p;
	}
	word->value[n] = 0;
	return true;
}

void options_parse(struct options *options, const char *line)
{
	struct word word;

	*options = (struct options){
		.modes = MODE_IDLE,
		.seed = 1,
		.working_set = 1024,
		.dirty_rate = 1000,
		.check_rate = 1000,
		.address = 10u << 24 | 2, /* 10.0.0.2 */
		.prefix = 24,
		.port = 7777,
		.blocks = 1024,
		.depth = 4,
		.flush_every = 64,
		.first_round = 1,
	};
	while (next_word(&line, &word))
		set_option(options, &word);
}

#include "text.h"

void *memcpy(void *to, const void *from, size_t n)
{
	void *result = to;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	return result;
}

void *memmove(void *to, const void *from, size_t n)
{
	if ((uintptr_t)to - (uintptr_t)from >= n)
		return memcpy(to, from, n);
	for (size_t i = n; i > 0; i--)
		((volatile uint8_t *)to)[i - 1] = ((const uint8_t *)from)[i - 1];
	return to;
}

void *memset(void *to, int value, size_t n)
{
	void *result = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return result;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < n; i++)
		if (x[i] != y[i])
			return x[i] < y[i] ? -1 : 1;
	return 0;
}

size_t strlen(const char *s)
{
	const volatile char *p = s; /* volatile: or the compiler turns the loop into a call of strlen */

	while (*p)
		p++;
	return (size_t)(p - s);
}

bool string_equal(const char *a, const char *b)
{
	size_t n = strlen(a);

	return n == strlen(b) && memcmp(a, b, n) == 0;
}

/* Where formatted text goes; what doesn't fit is dropped. */
struct sink {
	char *buffer;
	size_t size, used;
};

static void put(struct sink *sink, char c)
{
	if (sink->used + 1 < sink->size)
		sink->buffer[sink->used++] = c;
}

static void put_number(struct sink *sink, uint64_t value, unsigned base, unsigned width, char pad)
{
	char digits[20];
	unsigned n = 0;

	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	for (unsigned i = n; i < width; i++)
		put(sink, pad);
	while (n)
		put(sink, digits[--n]);
}

/* Formats one conversion, p being just past the percent sign; returns what follows it. */
static const char *put_conversion(struct sink *sink, const char *p, va_list *arguments)
{
	char pad = ' ';
	unsigned width = 0;
	bool is_long = false;

	if (*p == '0')
		pad = *p++;
	while (*p >= '0' && *p <= '9')
		width = width * 10 + (unsigned)(*p++ - '0');
	if (*p == 'l') {
		is_long = true;
		p++;
	}
	switch (*p) {
	case 'u':
	case 'x': {
		uint64_t value = is_long ? va_arg(*arguments, unsigned long) : va_arg(*arguments, unsigned);

		put_number(sink, value, *p == 'x' ? 16 : 10, width, pad);
		break;
	}
	case 's':
		for (const char *s = va_arg(*arguments, const char *); *s; s++)
			put(sink, *s);
		break;
	case 'c':
		put(sink, (char)va_arg(*arguments, int));
		break;
	case 0:
		return p;
	default:
		put(sink, *p);
	}
	return p + 1;
}

size_t format_arguments(char *buffer, size_t size, const char *fmt, va_list arguments)
{
	struct sink sink = {.buffer = buffer, .size = size};
	va_list copy;

	va_copy(copy, arguments);
	while (*fmt) {
		if (*fmt != '%')
			put(&sink, *fmt++);
		else
			fmt = put_conversion(&sink, fmt + 1, &copy);
	}
	va_end(copy);
	buffer[sink.used] = 0;
	return sink.used;
}

size_t format(char *buffer, size_t size, const char *fmt, ...)
{
	va_list arguments;

	va_start(arguments, fmt);
	size_t n = format_arguments(buffer, size, fmt, arguments);
	va_end(arguments);
	return n;
}

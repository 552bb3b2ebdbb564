/* Memory and string functions (the compiler may call the first four by itself) and console output. */
#ifndef TEXT_H
#define TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
bool string_equal(const char *a, const char *b);

/*
 * Formats into a buffer of size bytes, always terminated, cut when too long; returns the length without the
 * terminator. Understands %s, %c, %%, %u and %x (with an optional l, and 0 and a width before it).
 */
size_t format(char *buffer, size_t size, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
size_t format_arguments(char *buffer, size_t size, const char *fmt, va_list arguments)
	__attribute__((format(printf, 3, 0)));

/* Prepares the 16550 at COM1: 115200 8N1, FIFOs on, no interrupts. */
void serial_init(void);

/* Writes bytes to COM1; a newline becomes CR LF. Gives up on a port that never becomes ready. */
void serial_write(const char *bytes, size_t n);

/* Formats one line (without its newline, at most 511 bytes) and writes it to COM1 at once. */
void print_line(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif

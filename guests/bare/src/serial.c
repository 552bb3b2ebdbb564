/* The 16550 at COM1, polled (TI PC16550D data sheet). */
#include "cpu.h"
#include "text.h"

enum {
	COM1 = 0x3f8,
	DATA = COM1 + 0,       /* divisor low when LCR.DLAB is set */
	INTERRUPTS = COM1 + 1, /* divisor high when LCR.DLAB is set */
	FIFO_CONTROL = COM1 + 2,
	LINE_CONTROL = COM1 + 3,
	MODEM_CONTROL = COM1 + 4,
	LINE_STATUS = COM1 + 5,

	LCR_8N1 = 0x03,
	LCR_DLAB = 0x80,
	FCR_ENABLE_AND_CLEAR = 0x07,
	MCR_DTR_RTS = 0x03,
	LSR_THR_EMPTY = 0x20,

	FIFO_DEPTH = 16,
	READY_POLLS = 1000000, /* a port that is not there reads all ones, hence ready; this bounds one that is stuck */
};

void serial_init(void)
{
	out8(INTERRUPTS, 0);
	out8(LINE_CONTROL, LCR_8N1 | LCR_DLAB);
	out8(DATA, 1);
	out8(INTERRUPTS, 0);
	out8(LINE_CONTROL, LCR_8N1);
	out8(FIFO_CONTROL, FCR_ENABLE_AND_CLEAR);
	out8(MODEM_CONTROL, MCR_DTR_RTS);
}

/* Port accesses are exits to the hypervisor, so the status is read once per FIFO, not once per byte. */
static void put_byte(uint8_t byte)
{
	static unsigned room;

	for (unsigned polls = 0; room == 0; polls++) {
		if (polls == READY_POLLS)
			return;
		if (in8(LINE_STATUS) & LSR_THR_EMPTY)
			room = FIFO_DEPTH;
		else
			cpu_relax();
	}
	room--;
	out8(DATA, byte);
}

void serial_write(const char *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (bytes[i] == '\n')
			put_byte('\r');
		put_byte((uint8_t)bytes[i]);
	}
}

void print_line(const char *fmt, ...)
{
	char line[512];
	va_list arguments;

	va_start(arguments, fmt);
	size_t n = format_arguments(line, sizeof(line), fmt, arguments);
	va_end(arguments);
	line[n] = '\n';
	serial_write(line, n + 1);
}

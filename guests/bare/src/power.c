#include "power.h"

#include "cpu.h"
#include "irq.h"
#include "text.h"

enum {
	PVPANIC = 0x505,
	PVPANIC_PANICKED = 1 << 0,

	/*
	 * PM1a_CNT (ACPI 6.5, 4.8.3.2.1): SLP_EN is bit 13, SLP_TYPa bits 10 to 12. The type that means S5 is each
	 * platform's own choice, named in the DSDT's \_S5: 5 on Pollux, 0 on QEMU. Both keep the register at 0x604.
	 */
	PM1A_CONTROL = 0x604,
	SLEEP_POLLUX = 1 << 13 | 5 << 10,
	SLEEP_QEMU = 1 << 13 | 0 << 10,
};

extern volatile uint64_t fault_vector, fault_error, fault_rip, fault_cs, fault_rflags, fault_rsp, fault_address;

_Noreturn void panic_on_fault(void);

static _Noreturn void halt(void)
{
	for (;;) {
		irq_pending = 0;
		cpu_idle();
	}
}

static _Noreturn void panic_line(const char *message, size_t n)
{
	serial_write("panic: ", 7);
	serial_write(message, n);
	serial_write("\n", 1);
	out8(PVPANIC, PVPANIC_PANICKED);
	halt();
}

_Noreturn void panic(const char *fmt, ...)
{
	char message[512];
	va_list arguments;

	va_start(arguments, fmt);
	size_t n = format_arguments(message, sizeof(message), fmt, arguments);
	va_end(arguments);
	panic_line(message, n);
}

/* Entered from trap.S, in ring 3, on a fresh stack. */
_Noreturn void panic_on_fault(void)
{
	static bool entered;

	if (entered)
		halt(); /* the panic itself faulted: its message can't be had */
	entered = true;
	panic("exception %lu, error 0x%lx, at 0x%lx (cs 0x%lx, rflags 0x%lx, rsp 0x%lx), cr2 0x%lx", fault_vector,
	      fault_error, fault_rip, fault_cs, fault_rflags, fault_rsp, fault_address);
}

_Noreturn void power_off(void)
{
	out16(PM1A_CONTROL, SLEEP_POLLUX);
	for (uint64_t end = irq_ticks + TICKS_PER_SECOND / 2; irq_ticks < end;)
		cpu_relax();
	out16(PM1A_CONTROL, SLEEP_QEMU);
	halt();
}

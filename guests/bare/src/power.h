/* How the guest ends: a panic that the hypervisor sees, or a clean power-off. */
#ifndef POWER_H
#define POWER_H

/* Prints "panic: " and the message, signals the pvpanic device and halts for ever. */
_Noreturn void panic(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Powers the machine off through ACPI's PM1a control register. */
_Noreturn void power_off(void);

#endif

/* Interrupt controllers, the 100 Hz tick, and the guest's clock. */
#ifndef IRQ_H
#define IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

enum { TICKS_PER_SECOND = 100 };

/* Written by the handlers of trap.S. */
extern volatile uint64_t irq_ticks;                 /* timer interrupts */
extern volatile uint64_t irq_messages[MSI_VECTORS]; /* message-signalled interrupts, by vector */
extern volatile uint64_t irq_spurious;
extern volatile uint8_t irq_pending; /* an interrupt came since ring 3 last cleared this */

/* Enables the local APIC with the 8259s behind its LINT0, and the PIT at TICKS_PER_SECOND. Panics without ticks. */
void irq_init(void);

/* Hands out the next unused message vector; its number is an index into irq_messages. False when all are taken. */
bool irq_allocate_message(unsigned *number);

/* The MSI address and data that raise a message vector on this CPU (Intel SDM vol. 3, 11.11). */
uint32_t irq_message_address(void);
uint32_t irq_message_data(unsigned number);

/* All interrupts taken so far. */
uint64_t irq_total(void);

/* Measures the time-stamp counter. Needs irq_init. */
void clock_init(void);
uint64_t clock_tsc_hz(void);

/*
 * Nanoseconds since clock_init. Never runs back and never leaps: a step of the time-stamp counter that is negative or
 * longer than a second (the guest was paused, restored, or runs on another host) counts as the ticks seen in it.
 */
uint64_t clock_now(void);

#endif

#include "irq.h"

#include "cpu.h"
#include "power.h"

enum {
	PIC_MASTER_MASK = 0x21,
	PIT_CHANNEL0 = 0x40,
	PIT_COMMAND = 0x43,
	PIT_CHANNEL0_RATE = 0x34, /* channel 0, low then high byte, mode 2 (rate generator) */
	PIT_HZ = 1193182,
	PIT_DIVISOR = (PIT_HZ + TICKS_PER_SECOND / 2) / TICKS_PER_SECOND,

	/* The ACPI power management timer (ACPI 6.5, 4.8.3.3), at the port that Pollux and QEMU give it. */
	PM_TIMER = 0x608,
	PM_TIMER_HZ = 3579545,
	PM_TIMER_MASK = 0xffffff, /* 24 bits count, whatever its width */

	/* Local APIC registers, offsets from LAPIC_BASE (Intel SDM vol. 3, table 11-1). */
	LAPIC_ID = 0x020,
	LAPIC_TASK_PRIORITY = 0x080,
	LAPIC_SPURIOUS = 0x0f0,
	LAPIC_LVT_LINT0 = 0x350,
	LAPIC_LVT_LINT1 = 0x360,
	LAPIC_ENABLE = 1 << 8,
	LVT_NMI = 4 << 8,
	LVT_EXTINT = 7 << 8,
};

/* Rounds of the wait for a tick: several seconds on any CPU, and no clock is needed to count them. */
#define TICK_PATIENCE (1ull << 30)

static unsigned messages_taken;

static volatile void *lapic(unsigned offset)
{
	return (volatile void *)(uintptr_t)(LAPIC_BASE + offset);
}

static void wait_for_tick(void)
{
	uint64_t tick = irq_ticks;

	for (uint64_t rounds = 0; irq_ticks == tick; rounds++) {
		if (rounds == TICK_PATIENCE)
			panic("no timer interrupts from the PIT on IRQ 0");
		cpu_relax();
	}
}

void irq_init(void)
{
	mmio_write32(lapic(LAPIC_TASK_PRIORITY), 0);
	mmio_write32(lapic(LAPIC_SPURIOUS), LAPIC_ENABLE | VECTOR_SPURIOUS);
	mmio_write32(lapic(LAPIC_LVT_LINT0), LVT_EXTINT);
	mmio_write32(lapic(LAPIC_LVT_LINT1), LVT_NMI);

	out8(PIT_COMMAND, PIT_CHANNEL0_RATE);
	out8(PIT_CHANNEL0, PIT_DIVISOR & 0xff);
	out8(PIT_CHANNEL0, PIT_DIVISOR >> 8);
	out8(PIC_MASTER_MASK, (uint8_t)~1u);
	wait_for_tick();
}

bool irq_allocate_message(unsigned *number)
{
	if (messages_taken == MSI_VECTORS)
		return false;
	*number = messages_taken++;
	return true;
}

uint32_t irq_message_address(void)
{
	uint32_t id = mmio_read32(lapic(LAPIC_ID)) >> 24;

	return LAPIC_BASE | id << 12; /* physical destination, no redirection hint */
}

uint32_t irq_message_data(unsigned number)
{
	return VECTOR_MSI + number; /* fixed delivery, edge triggered */
}

uint64_t irq_total(void)
{
	uint64_t total = irq_ticks;

	for (unsigned i = 0; i < MSI_VECTORS; i++)
		total += irq_messages[i];
	return total;
}

/* The clock's state: nanoseconds so far, and the counter and tick at which they were read. */
static struct {
	uint64_t tsc_hz;
	uint64_t ns_per_count; /* 32.32 fixed point */
	uint64_t now, tsc, ticks;
} clock;

#define NS_PER_SECOND 1000000000ull

/* Outside of these no CPU's counter runs: the hypervisor stepped it while we measured. */
#define TSC_HZ_MIN 1000000ull
#define TSC_HZ_MAX 100000000000ull

enum { CALIBRATION_TICKS = 10 };

/* A reading of both clocks, taken as close together as a few tries get it. */
struct reading {
	uint64_t tsc;
	uint32_t timer;
};

static struct reading read_both(void)
{
	enum { TRIES = 8 };
	struct reading best = {0, 0};
	uint64_t best_width = UINT64_MAX;

	for (unsigned i = 0; i < TRIES; i++) {
		uint64_t before = read_tsc();
		uint32_t timer = in32(PM_TIMER) & PM_TIMER_MASK;
		uint64_t width = read_tsc() - before;

		if (width < best_width) {
			best_width = width;
			best = (struct reading){before + width / 2, timer};
		}
	}
	return best;
}

/*
 * The time-stamp counter's frequency, measured over some ticks; 0 when it was stepped meanwhile. The ticks only say how
 * long to wait: a busy host delivers them late and in bunches, so the power management timer is the measure. Where a
 * hypervisor has none, the ticks have to do.
 */
static uint64_t measure_tsc(void)
{
	struct reading start = read_both();
	uint64_t tick = irq_ticks;

	while (irq_ticks - tick < CALIBRATION_TICKS)
		wait_for_tick();
	struct reading end = read_both();
	uint64_t ticks = irq_ticks - tick, counts = end.tsc - start.tsc;
	uint32_t timer = (end.timer - start.timer) & PM_TIMER_MASK;

	if (counts > TSC_HZ_MAX)
		return 0;
	return timer ? counts * PM_TIMER_HZ / timer : counts * TICKS_PER_SECOND / ticks;
}

void clock_init(void)
{
	do
		clock.tsc_hz = measure_tsc();
	while (clock.tsc_hz < TSC_HZ_MIN || clock.tsc_hz > TSC_HZ_MAX);
	clock.ns_per_count = (NS_PER_SECOND << 32) / clock.tsc_hz;
	clock.tsc = read_tsc();
	clock.ticks = irq_ticks;
}

uint64_t clock_tsc_hz(void)
{
	return clock.tsc_hz;
}

uint64_t clock_now(void)
{
	uint64_t tsc = read_tsc(), ticks = irq_ticks;
	uint64_t counts = tsc - clock.tsc; /* a step back wraps to a huge number */

	if (counts <= clock.tsc_hz)
		clock.now += (uint64_t)(((unsigned __int128)counts * clock.ns_per_count) >> 32);
	else
		clock.now += (ticks - clock.ticks) * (NS_PER_SECOND / TICKS_PER_SECOND);
	clock.tsc = tsc;
	clock.ticks = ticks;
	return clock.now;
}

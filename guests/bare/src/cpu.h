/* Ports, memory-mapped registers, barriers and byte order. All of it works in ring 3. */
#ifndef CPU_H
#define CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 4096ul

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

static inline void out8(uint16_t port, uint8_t value)
{
	asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t value)
{
	asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
	asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
	uint8_t value;
	asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline uint32_t in32(uint16_t port)
{
	uint32_t value;
	asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/*
 * MMIO goes through plain MOVs of the stated width: the hypervisor decodes the instruction, and a compiler left to
 * itself may choose one that reads and writes, or is wider than the register.
 */
static inline uint8_t mmio_read8(const volatile void *address)
{
	uint8_t value;
	asm volatile("movb %1, %0" : "=q"(value) : "m"(*(const volatile uint8_t *)address) : "memory");
	return value;
}

static inline uint16_t mmio_read16(const volatile void *address)
{
	uint16_t value;
	asm volatile("movw %1, %0" : "=r"(value) : "m"(*(const volatile uint16_t *)address) : "memory");
	return value;
}

static inline uint32_t mmio_read32(const volatile void *address)
{
	uint32_t value;
	asm volatile("movl %1, %0" : "=r"(value) : "m"(*(const volatile uint32_t *)address) : "memory");
	return value;
}

static inline void mmio_write8(volatile void *address, uint8_t value)
{
	asm volatile("movb %0, %1" : : "q"(value), "m"(*(volatile uint8_t *)address) : "memory");
}

static inline void mmio_write16(volatile void *address, uint16_t value)
{
	asm volatile("movw %0, %1" : : "r"(value), "m"(*(volatile uint16_t *)address) : "memory");
}

static inline void mmio_write32(volatile void *address, uint32_t value)
{
	asm volatile("movl %0, %1" : : "r"(value), "m"(*(volatile uint32_t *)address) : "memory");
}

/* Orders earlier stores before later loads, which x86 does not do by itself (Intel SDM vol. 3, 9.2.2). */
static inline void memory_fence(void)
{
	asm volatile("mfence" : : : "memory");
}

static inline void compiler_barrier(void)
{
	asm volatile("" : : : "memory");
}

static inline void cpu_relax(void)
{
	asm volatile("pause" : : : "memory");
}

static inline uint64_t read_tsc(void)
{
	uint32_t low, high;
	asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

/* Sleeps until an interrupt, or returns at once when irq_pending is set. HLT faults in ring 3; see trap.S. */
static inline void cpu_idle(void)
{
	asm volatile("hlt" : : : "memory");
}

/* Big-endian fields at any alignment. */
static inline uint16_t load_be16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t load_be32(const uint8_t *p)
{
	return (uint32_t)load_be16(p) << 16 | load_be16(p + 2);
}

static inline uint64_t load_be64(const uint8_t *p)
{
	return (uint64_t)load_be32(p) << 32 | load_be32(p + 4);
}

static inline void store_be16(uint8_t *p, uint16_t value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
}

static inline void store_be32(uint8_t *p, uint32_t value)
{
	store_be16(p, (uint16_t)(value >> 16));
	store_be16(p + 2, (uint16_t)value);
}

static inline void store_be64(uint8_t *p, uint64_t value)
{
	store_be32(p, (uint32_t)(value >> 32));
	store_be32(p + 4, (uint32_t)value);
}

#endif

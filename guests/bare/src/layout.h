/* Constants that assembly and C share: segment selectors and interrupt vectors. */
#ifndef LAYOUT_H
#define LAYOUT_H

/* Selectors into the GDT of start.S. Ring-3 selectors carry RPL 3. */
#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_SS 0x1b
#define USER_CS 0x23
#define TSS_SELECTOR 0x28

/* IDT: exceptions, then the 8259s' sixteen lines, then messages (MSI-X), then the LAPIC's spurious vector. */
#define VECTOR_PIC 0x20
#define VECTOR_MSI 0x30
#define MSI_VECTORS 8
#define STUB_COUNT (VECTOR_MSI + MSI_VECTORS)
#define STUB_SIZE 64
#define VECTOR_SPURIOUS 0xff

/* The local APIC's default base (Intel SDM vol. 3, 11.4.1) and its end-of-interrupt register. */
#define LAPIC_BASE 0xfee00000
#define LAPIC_EOI 0xfee000b0

#endif

/*
 * From the PVH entry to ring 3.
 *
 * PVH (Xen, "PVHv2 / HVM start day structures") enters in 32-bit protected mode with flat segments, paging off and
 * %ebx holding the physical address of struct hvm_start_info. Everything below runs in ring 0, which a paravirtual
 * KVM interprets slowly and incompletely, so there is as little of it as possible: tables are static data, and what
 * can be done from ring 3 (page tables for high memory, interrupt controllers, drivers) is done there.
 */
#include "layout.h"

#define CR0_PE (1 << 0)
#define CR0_MP (1 << 1)
#define CR0_NE (1 << 5)
#define CR0_WP (1 << 16)
#define CR0_PG (1 << 31)
#define CR4_PAE (1 << 5)
#define CR4_OSFXSR (1 << 9)
#define CR4_OSXMMEXCPT (1 << 10)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)
#define RFLAGS_RING3 0x202 /* IF; bit 1 is always set. IOPL stays 0: the TSS bitmap grants the ports. */

#define PAGE_TABLE 0x07 /* present, writable, user */
#define PAGE_2M 0x87    /* the same, 2 MiB leaf */
#define PAGE_2M_IO 0x9f /* the same, uncached (PCD, PWT) */

	.section .note.pvh, "a", @note
	.balign 4
	.long 4  /* size of the name */
	.long 8  /* size of the value */
	.long 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad start32

	.text
	.code32
	.global start32
start32:
	cli
	cld
	movl %ebx, start_info_address

	movl $page_map_level4, %eax
	movl %eax, %cr3
	movl $(CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT), %eax
	movl %eax, %cr4
	movl $MSR_EFER, %ecx
	rdmsr
	orl $EFER_LME, %eax
	wrmsr
	movl $(CR0_PE | CR0_MP | CR0_NE | CR0_WP | CR0_PG), %eax
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $KERNEL_CS, $start64

	.code64
start64:
	movl $KERNEL_SS, %eax
	movl %eax, %ss
	movl %eax, %ds
	movl %eax, %es
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movq $ring0_stack_top, %rsp

	/* The linker can't split an address over a descriptor's fields, so these are filled in here. The image lies
	   below 16 MiB, hence no bits from 24 up. */
	movl $task_state, %eax
	movw %ax, gdt_task_state + 2
	shrl $16, %eax
	movb %al, gdt_task_state + 4

	movl $trap_stubs, %eax
	movl $idt, %edi
	movl $STUB_COUNT, %ecx
1:	call set_gate
	addl $STUB_SIZE, %eax
	addl $16, %edi
	decl %ecx
	jnz 1b
	movl $trap_spurious, %eax
	movl $(idt + 16 * VECTOR_SPURIOUS), %edi
	call set_gate

	lidt idt_pointer
	movl $TSS_SELECTOR, %eax
	ltr %ax

	/* Move the 8259s off the exceptions' vectors and mask all lines before interrupts are on. */
	movl $pic_setup, %esi
	movl $((pic_setup_end - pic_setup) / 2), %ecx
2:	movzbl (%rsi), %edx
	movb 1(%rsi), %al
	outb %al, %dx
	addl $2, %esi
	decl %ecx
	jnz 2b

	pushq $USER_SS
	pushq $(ring3_stack_top - 8) /* as after a call: the ABI wants %rsp + 8 on a 16-byte boundary */
	pushq $RFLAGS_RING3
	pushq $USER_CS
	pushq $guest_main
	iretq

/* Writes a 64-bit interrupt gate (DPL 0) for the handler at %eax to (%edi). */
set_gate:
	movw %ax, (%rdi)
	movw $KERNEL_CS, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	movl %eax, %edx
	shrl $16, %edx
	movl %edx, 6(%rdi) /* the last two bytes of this store are bits 32 to 47 of the address: 0 */
	ret

	.section .rodata
/*
 * Pairs of port and value: ICW1 to ICW4, then the masks (Intel 8259A data sheet). ICW4 chooses automatic end of
 * interrupt: the timer is the only line in use, and its handler is spared an exit to the hypervisor.
 */
pic_setup:
	.byte 0x20, 0x11, 0xa0, 0x11
	.byte 0x21, VECTOR_PIC, 0xa1, VECTOR_PIC + 8
	.byte 0x21, 0x04, 0xa1, 0x02
	.byte 0x21, 0x03, 0xa1, 0x03
	.byte 0x21, 0xff, 0xa1, 0xff
pic_setup_end:

	.data
	.balign 8
gdt:
	.quad 0
	.quad 0x00209b0000000000 /* KERNEL_CS: code, 64-bit, DPL 0 */
	.quad 0x00cf93000000ffff /* KERNEL_SS: data, DPL 0 */
	.quad 0x00cff3000000ffff /* USER_SS: data, DPL 3 */
	.quad 0x0020fb0000000000 /* USER_CS: code, 64-bit, DPL 3 */
gdt_task_state:
	.word task_state_end - task_state - 1, 0
	.byte 0, 0x89, 0, 0
	.quad 0
gdt_pointer:
	.word . - gdt - 1
	.quad gdt

	.balign 8
idt_pointer:
	.word 256 * 16 - 1
	.quad idt

/* 64-bit TSS (Intel SDM vol. 3, 8.7). The I/O bitmap is all zero: ring 3 may use every port. */
	.balign 16
task_state:
	.long 0
	.quad ring0_stack_top /* RSP0 */
	.fill 90, 1, 0
	.word 104 /* offset of the I/O bitmap */
	.fill 8192, 1, 0
	.byte 0xff
task_state_end:

	.global start_info_address
	.balign 4
start_info_address:
	.long 0

/* Identity map of the first 4 GiB; the MMIO hole from 3 GiB up is uncached. mem.c adds what lies above. */
	.global page_map_level4
	.balign 4096
page_map_level4:
	.quad page_pointers + PAGE_TABLE
	.fill 511, 8, 0
page_pointers:
	.quad page_directories + 0x0000 + PAGE_TABLE
	.quad page_directories + 0x1000 + PAGE_TABLE
	.quad page_directories + 0x2000 + PAGE_TABLE
	.quad page_directories + 0x3000 + PAGE_TABLE
	.fill 508, 8, 0
page_directories:
	.set frame, 0
	.rept 3 * 512
	.quad (frame << 21) + PAGE_2M
	.set frame, frame + 1
	.endr
	.rept 512
	.quad (frame << 21) + PAGE_2M_IO
	.set frame, frame + 1
	.endr

	.bss
	.balign 4096
idt:
	.skip 256 * 16
	.skip 16384
	.global ring0_stack_top
ring0_stack_top:
	.skip 65536
	.global ring3_stack_top
ring3_stack_top:

	.section .note.GNU-stack, "", @progbits

/*
 * Interrupt and exception entry. These run in ring 0 on the TSS's stack and are interpreted on a paravirtual KVM, so
 * each does the least it can: count, tell ring 3, end a message's interrupt, return. No SSE, no C.
 *
 * The stubs of vectors 0 to STUB_COUNT-1 lie STUB_SIZE bytes apart; start.S builds the IDT from that.
 */
#include "layout.h"

	.text
	.code64
	.global trap_stubs, trap_spurious

/* Ends a stub: an error here means that the stub outgrew STUB_SIZE. */
.macro END_STUB start
	.org \start + STUB_SIZE, 0xcc
.endm

.macro EXCEPTION vector, has_error
stub_\vector:
	.ifeq \has_error
	pushq $0
	.endif
	pushq $\vector
	jmp exception
	END_STUB stub_\vector
.endm

/* The other lines of the 8259s are masked, so what arrives here is spurious. */
.macro PIC_SPURIOUS vector
stub_\vector:
	incq irq_spurious
	iretq
	END_STUB stub_\vector
.endm

.macro MESSAGE number
message_\number:
	incq irq_messages + 8 * \number
	movb $1, irq_pending
	pushq %rax
	movl $LAPIC_EOI, %eax
	movl $0, (%rax)
	popq %rax
	iretq
	END_STUB message_\number
.endm

	.balign STUB_SIZE
trap_stubs:
	EXCEPTION 0, 0
	EXCEPTION 1, 0
	EXCEPTION 2, 0
	EXCEPTION 3, 0
	EXCEPTION 4, 0
	EXCEPTION 5, 0
	EXCEPTION 6, 0
	EXCEPTION 7, 0
	EXCEPTION 8, 1
	EXCEPTION 9, 0
	EXCEPTION 10, 1
	EXCEPTION 11, 1
	EXCEPTION 12, 1
stub_13:
	jmp general_protection
	END_STUB stub_13
	EXCEPTION 14, 1
	EXCEPTION 15, 0
	EXCEPTION 16, 0
	EXCEPTION 17, 1
	EXCEPTION 18, 0
	EXCEPTION 19, 0
	EXCEPTION 20, 0
	EXCEPTION 21, 1
	EXCEPTION 22, 0
	EXCEPTION 23, 0
	EXCEPTION 24, 0
	EXCEPTION 25, 0
	EXCEPTION 26, 0
	EXCEPTION 27, 0
	EXCEPTION 28, 0
	EXCEPTION 29, 1
	EXCEPTION 30, 1
	EXCEPTION 31, 0

timer:	/* VECTOR_PIC + 0: the PIT, ended automatically (start.S) */
	incq irq_ticks
	movb $1, irq_pending
	iretq
	END_STUB timer
	.irp line, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47
	PIC_SPURIOUS \line
	.endr

	.irp number, 0, 1, 2, 3, 4, 5, 6, 7
	MESSAGE \number
	.endr

trap_spurious:
	incq irq_spurious
	iretq

/*
 * #GP. Ring 3 idles by executing HLT, which faults: skip it and halt here instead, unless an interrupt came since
 * ring 3 last cleared irq_pending. Interrupts are off until STI, whose shadow covers HLT, so none is missed.
 * Stack: error code, rip, cs, rflags, rsp, ss.
 */
general_protection:
	pushq %rax
	cmpq $0, 8(%rsp)
	jne 2f
	testb $3, 24(%rsp)
	jz 2f
	movq 16(%rsp), %rax
	cmpb $0xf4, (%rax)
	jne 2f
	incq 16(%rsp)
	popq %rax
	addq $8, %rsp
	cmpb $0, irq_pending
	jne 1f
	sti
	hlt
	cli
1:	iretq
2:	popq %rax
	pushq $13
	/* fall through */

/*
 * An exception that nobody expects. Stack: vector, error code, rip, cs, rflags, rsp, ss. Keep them for the message and
 * continue in ring 3, on a fresh stack, in panic_on_fault.
 */
exception:
	popq fault_vector
	popq fault_error
	popq fault_rip
	popq fault_cs
	popq fault_rflags
	popq fault_rsp
	movq %cr2, %rax
	movq %rax, fault_address
	movq $ring0_stack_top, %rsp
	pushq $USER_SS
	pushq $(ring3_stack_top - 8)
	pushq $0x202
	pushq $USER_CS
	pushq $panic_on_fault
	iretq

	.bss
	.balign 8
	.global irq_ticks, irq_spurious, irq_messages, irq_pending
irq_ticks:
	.skip 8
irq_spurious:
	.skip 8
irq_messages:
	.skip 8 * MSI_VECTORS
irq_pending:
	.skip 8
	.global fault_vector, fault_error, fault_rip, fault_cs, fault_rflags, fault_rsp, fault_address
fault_vector:
	.skip 8
fault_error:
	.skip 8
fault_rip:
	.skip 8
fault_cs:
	.skip 8
fault_rflags:
	.skip 8
fault_rsp:
	.skip 8
fault_address:
	.skip 8

	.section .note.GNU-stack, "", @progbits

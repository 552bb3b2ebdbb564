/* The virtio-blk driver (virtio 1.2, section 5.2): a fixed number of slots, each one request in flight. */
#ifndef DISK_H
#define DISK_H

#include <stdbool.h>
#include <stdint.h>

enum {
	DISK_BLOCK = 4096, /* bytes a request; a buffer's size */
	DISK_SLOTS = 16,
};

enum disk_request { DISK_READ = 0, DISK_WRITE_OUT = 1, DISK_FLUSH = 4 }; /* section 5.2.6 */

/* Brings the first virtio-blk device up; panics when there is none. */
void disk_init(bool poll);
bool disk_is_polled(void);
bool disk_is_read_only(void);
uint64_t disk_blocks(void); /* capacity in whole blocks */

/* Panics when the device is broken. Costs an exit to the hypervisor. */
void disk_check_health(void);

/* A slot that is not in use, or -1. */
int disk_free_slot(void);
uint64_t *disk_buffer(unsigned slot);

/* Starts a request on a free slot: its buffer to or from a block, or a flush. Shown to the device by disk_submit. */
void disk_start(unsigned slot, enum disk_request request, uint64_t block);
void disk_submit(void);

/* Takes one completed request, whose slot is free from then on; panics when it failed. False when there is none. */
bool disk_complete(unsigned *slot, enum disk_request *request, uint64_t *block);

#endif

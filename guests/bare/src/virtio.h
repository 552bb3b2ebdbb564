/* virtio 1.2 over PCI: the transport (section 4.1) and split virtqueues (section 2.7), driver side. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "pci.h"

/* Feature bits that belong to no device type (section 6). */
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

enum { QUEUE_MAX = 256 };

struct virtio_device {
	const char *name;
	struct pci_function pci;
	volatile uint8_t *common, *notify, *config;
	uint32_t config_size;
	uint64_t notify_size;
	uint32_t notify_multiplier;
	uint64_t features; /* what was negotiated */
	bool polled;       /* no interrupts: somebody has to look */
};

/* Layouts of sections 2.7.5, 2.7.6 and 2.7.8; x86 is little endian, as they are. */
struct queue_descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags;
	uint16_t next;
};

struct queue_available {
	uint16_t flags;
	uint16_t index;
	uint16_t ring[QUEUE_MAX];
	uint16_t used_event;
};

struct queue_used_element {
	uint32_t id;
	uint32_t length;
};

struct queue_used {
	uint16_t flags;
	uint16_t index;
	struct queue_used_element ring[QUEUE_MAX];
	uint16_t available_event;
};

/*
 * One split virtqueue. Rings are sized for QUEUE_MAX entries, but with a smaller queue the two event fields lie right
 * behind the entries in use, not at the struct's members: use_event and available_event point at the right place.
 */
struct virtqueue {
	struct queue_descriptor descriptors[QUEUE_MAX] __attribute__((aligned(4096)));
	struct queue_available available __attribute__((aligned(4096)));
	struct queue_used used __attribute__((aligned(4096)));

	struct virtio_device *device;
	volatile uint8_t *doorbell;
	volatile uint16_t *used_event, *available_event;
	uint16_t index, size;
	uint16_t free_head, free_count;
	uint16_t next_available; /* the available index, including what isn't published yet */
	uint16_t published;      /* the available index that the device has been shown */
	uint16_t last_used;      /* the used index up to which answers have been taken */
	bool interrupts;
	uint16_t chain_length[QUEUE_MAX]; /* by head; 0: not in flight */
	uint16_t token[QUEUE_MAX];        /* by head: the caller's name for it */
};

/* A part of a request. */
struct queue_part {
	void *address;
	uint32_t length;
	bool device_writes;
};

/*
 * Finds the first device of a type (section 5; 1 net, 2 blk), resets it and negotiates: VERSION_1, of the wanted
 * features those that are offered. False when there is no such device; panics when it can't be driven.
 */
bool virtio_open(struct virtio_device *device, const char *name, uint16_t type, uint64_t wanted, bool poll);

/* Sets a queue up, with at most QUEUE_MAX entries, before virtio_start. */
void virtio_add_queue(struct virtio_device *device, struct virtqueue *queue, uint16_t index);

/* DRIVER_OK: the device may use its queues. */
void virtio_start(struct virtio_device *device);

/* Panics when the device asks for a reset (DEVICE_NEEDS_RESET). */
void virtio_check_health(struct virtio_device *device);

uint8_t virtio_config8(const struct virtio_device *device, unsigned offset);
uint32_t virtio_config32(const struct virtio_device *device, unsigned offset);

/* Puts a request into the queue without showing it to the device. False when there are too few free descriptors. */
bool queue_add(struct virtqueue *queue, const struct queue_part *parts, unsigned count, uint16_t token);

/* Shows everything added so far to the device, and notifies it if it wants to be. */
void queue_publish(struct virtqueue *queue);

/* Takes one answered request: its token and the bytes that the device wrote. False when there is none. */
bool queue_take(struct virtqueue *queue, uint16_t *token, uint32_t *length);

/*
 * Asks for, or declines, interrupts on answers. After asking, look once more (queue_has_answers): answers that came
 * before the device saw the wish raise none.
 */
void queue_set_interrupts(struct virtqueue *queue, bool on);
bool queue_has_answers(const struct virtqueue *queue);

#endif

/* The virtio-net driver (virtio 1.2, section 5.1): whole frames in, whole frames out, no offloads. */
#ifndef NET_H
#define NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	ETHERNET_HEADER = 14,
	FRAME_MAX = 1514,
};

extern uint8_t net_mac[6];

/* Brings the first virtio-net device up; panics when there is none. */
void net_init(bool poll, uint64_t seed);
bool net_is_polled(void);

/* Panics when the device is broken. Costs an exit to the hypervisor: not for every frame. */
void net_check_health(void);

/*
 * The next frame received, or NULL. It stays valid until net_receive_done, which gives its buffer back to the device
 * and must come before the next net_receive.
 */
const uint8_t *net_receive(size_t *length);
void net_receive_done(void);

/* A buffer of FRAME_MAX bytes for the next frame to send, or NULL while the device has all of them. */
uint8_t *net_transmit_buffer(void);

/* Sends the buffer that net_transmit_buffer gave last. */
void net_transmit(size_t length);

/* Shows the device what was done since the last call; once after a batch, before sleeping. */
void net_flush(void);

#endif

#include "net.h"

#include "cpu.h"
#include "power.h"
#include "random.h"
#include "text.h"
#include "virtio.h"

enum {
	TYPE_NET = 1,
	QUEUE_RECEIVE = 0,
	QUEUE_TRANSMIT = 1,
	CONFIG_MAC = 0,

	/*
	 * struct virtio_net_hdr: num_buffers is part of it with VERSION_1, MRG_RXBUF or not (section 5.1.6.1). All of it
	 * stays zero on transmit: no checksum to fill in, no segmentation.
	 */
	NET_HEADER = 12,
	BUFFER_SIZE = 2048,
	BUFFERS = QUEUE_MAX,
};

#define VIRTIO_NET_F_MAC (1ull << 5)

uint8_t net_mac[6];

static struct virtio_device device;
static struct virtqueue receive_queue, transmit_queue;
static uint8_t receive_buffers[BUFFERS][BUFFER_SIZE] __attribute__((aligned(4096)));
static uint8_t transmit_buffers[BUFFERS][BUFFER_SIZE] __attribute__((aligned(4096)));

static uint16_t receiving; /* the buffer between net_receive and net_receive_done */

/* Transmit buffers that the device doesn't have; the last one is next. */
static uint16_t transmit_free[BUFFERS];
static uint16_t transmit_free_count;

static void give_receive_buffer(uint16_t buffer)
{
	const struct queue_part part = {receive_buffers[buffer], BUFFER_SIZE, true};

	if (!queue_add(&receive_queue, &part, 1, buffer))
		panic("net0: no descriptor for a receive buffer");
}

static void read_mac(uint64_t seed)
{
	uint64_t random = random_mix(seed);

	if (device.features & VIRTIO_NET_F_MAC) {
		for (unsigned i = 0; i < sizeof(net_mac); i++)
			net_mac[i] = virtio_config8(&device, CONFIG_MAC + i);
		return;
	}
	memcpy(net_mac, &random, sizeof(net_mac));
	net_mac[0] = (uint8_t)((net_mac[0] & ~1u) | 2); /* unicast, locally administered */
}

void net_init(bool poll, uint64_t seed)
{
	if (!virtio_open(&device, "net0", TYPE_NET, VIRTIO_NET_F_MAC | VIRTIO_F_EVENT_IDX, poll))
		panic("mode=serve needs a virtio-net device, and there is none");
	read_mac(seed);
	virtio_add_queue(&device, &receive_queue, QUEUE_RECEIVE);
	virtio_add_queue(&device, &transmit_queue, QUEUE_TRANSMIT);
	queue_set_interrupts(&transmit_queue, false); /* buffers are collected when the next frame is sent */
	virtio_start(&device);

	for (uint16_t i = 0; i < receive_queue.size; i++)
		give_receive_buffer(i);
	for (uint16_t i = 0; i < transmit_queue.size; i++)
		transmit_free[transmit_free_count++] = i;
	net_flush();
}

bool net_is_polled(void)
{
	return device.polled;
}

void net_check_health(void)
{
	virtio_check_health(&device);
}

const uint8_t *net_receive(size_t *length)
{
	uint32_t written;

	if (!queue_take(&receive_queue, &receiving, &written))
		return NULL;
	if (written < NET_HEADER || written > BUFFER_SIZE)
		panic("net0: the device wrote %u bytes into a receive buffer of %u", written, BUFFER_SIZE);
	*length = written - NET_HEADER;
	return receive_buffers[receiving] + NET_HEADER;
}

void net_receive_done(void)
{
	give_receive_buffer(receiving);
}

static void collect_transmitted(void)
{
	uint16_t buffer;
	uint32_t written;

	while (queue_take(&transmit_queue, &buffer, &written))
		transmit_free[transmit_free_count++] = buffer;
}

uint8_t *net_transmit_buffer(void)
{
	if (!transmit_free_count)
		collect_transmitted();
	if (!transmit_free_count) {
		/* Full: show the device what it has, sleep until it returns a buffer. */
		queue_publish(&transmit_queue);
		queue_set_interrupts(&transmit_queue, true);
		collect_transmitted();
		if (!transmit_free_count)
			return NULL;
	}
	if (transmit_queue.interrupts)
		queue_set_interrupts(&transmit_queue, false);
	return transmit_buffers[transmit_free[transmit_free_count - 1]] + NET_HEADER;
}

void net_transmit(size_t length)
{
	uint16_t buffer = transmit_free[--transmit_free_count];
	const struct queue_part part = {transmit_buffers[buffer], NET_HEADER + (uint32_t)length, false};

	if (!queue_add(&transmit_queue, &part, 1, buffer))
		panic("net0: no descriptor for a transmit buffer");
}

void net_flush(void)
{
	queue_publish(&receive_queue);
	queue_publish(&transmit_queue);
}

#include "disk.h"

#include "cpu.h"
#include "power.h"
#include "virtio.h"

enum {
	TYPE_BLOCK = 2,
	QUEUE = 0,
	CONFIG_CAPACITY = 0, /* in sectors */
	SECTOR = 512,
	SECTORS_PER_BLOCK = DISK_BLOCK / SECTOR,

	STATUS_OK = 0,
	STATUS_UNSET = 0xff, /* no device writes this */
};

#define VIRTIO_BLK_F_RO (1ull << 5)
#define VIRTIO_BLK_F_FLUSH (1ull << 9)

/* struct virtio_blk_req, without its data. */
struct request_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

struct slot {
	struct request_header header;
	volatile uint8_t status;
	bool busy;
	enum disk_request request;
	uint64_t block;
};

static struct virtio_device device;
static struct virtqueue queue;
static struct slot slots[DISK_SLOTS];
static uint64_t buffers[DISK_SLOTS][DISK_BLOCK / sizeof(uint64_t)] __attribute__((aligned(4096)));
static uint64_t capacity; /* sectors */

void disk_init(bool poll)
{
	if (!virtio_open(&device, "disk0", TYPE_BLOCK, VIRTIO_BLK_F_RO | VIRTIO_BLK_F_FLUSH | VIRTIO_F_EVENT_IDX, poll))
		panic("mode=block needs a virtio-blk device, and there is none");
	capacity = virtio_config32(&device, CONFIG_CAPACITY) |
		   (uint64_t)virtio_config32(&device, CONFIG_CAPACITY + 4) << 32;
	virtio_add_queue(&device, &queue, QUEUE);
	virtio_start(&device);
}

bool disk_is_polled(void)
{
	return device.polled;
}

bool disk_is_read_only(void)
{
	return device.features & VIRTIO_BLK_F_RO;
}

uint64_t disk_blocks(void)
{
	return capacity / SECTORS_PER_BLOCK;
}

void disk_check_health(void)
{
	virtio_check_health(&device);
}

int disk_free_slot(void)
{
	for (int i = 0; i < DISK_SLOTS; i++)
		if (!slots[i].busy)
			return i;
	return -1;
}

uint64_t *disk_buffer(unsigned slot)
{
	return buffers[slot];
}

/* Without FLUSH the device writes through (section 5.2.6.2), and a flush has nothing to do: it is done as a read. */
static uint32_t type_on_wire(enum disk_request request)
{
	if (request == DISK_FLUSH && !(device.features & VIRTIO_BLK_F_FLUSH))
		return DISK_READ;
	return request;
}

void disk_start(unsigned slot, enum disk_request request, uint64_t block)
{
	struct slot *s = &slots[slot];
	struct queue_part parts[3];
	unsigned count = 0;

	s->busy = true;
	s->request = request;
	s->block = block;
	s->status = STATUS_UNSET;
	s->header.type = type_on_wire(request);
	s->header.sector = request == DISK_FLUSH ? 0 : block * SECTORS_PER_BLOCK; /* zero for a flush: 5.2.6.1 */

	parts[count++] = (struct queue_part){&s->header, sizeof(s->header), false};
	if (s->header.type != DISK_FLUSH)
		parts[count++] = (struct queue_part){buffers[slot], DISK_BLOCK, s->header.type == DISK_READ};
	parts[count++] = (struct queue_part){(void *)&s->status, 1, true};
	if (!queue_add(&queue, parts, count, (uint16_t)slot))
		panic("disk0: no descriptors for a request: the queue has %u", queue.size);
}

void disk_submit(void)
{
	queue_publish(&queue);
}

static const char *name_of(enum disk_request request)
{
	return request == DISK_READ ? "read" : request == DISK_FLUSH ? "flush" : "write";
}

bool disk_complete(unsigned *slot, enum disk_request *request, uint64_t *block)
{
	uint16_t token;
	uint32_t written;

	if (!queue_take(&queue, &token, &written))
		return false;
	struct slot *s = &slots[token];

	if (s->status != STATUS_OK)
		panic("disk0: %s of block %lu failed with status %u", name_of(s->request), s->block, s->status);
	/* What the device wrote: the data of a read, and the status. */
	uint32_t least = s->header.type == DISK_READ ? DISK_BLOCK + 1 : 1;

	if (written < least)
		panic("disk0: %s of block %lu: the device says that it wrote %u bytes, not %u", name_of(s->request),
		      s->block, written, least);
	s->busy = false;
	*slot = token;
	*request = s->request;
	*block = s->block;
	return true;
}

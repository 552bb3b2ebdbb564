/* The PCI transport: virtio 1.2, section 4.1. */
#include "virtio.h"

#include "cpu.h"
#include "irq.h"
#include "memory.h"
#include "power.h"

enum {
	VENDOR_VIRTIO = 0x1af4,
	DEVICE_MODERN = 0x1040,       /* + type */
	DEVICE_TRANSITIONAL = 0x0fff, /* + type, for net and blk */

	/* struct virtio_pci_cap, section 4.1.4. */
	CAPABILITY_VENDOR = 0x09,
	CAP_TYPE = 3,
	CAP_BAR = 4,
	CAP_OFFSET = 8,
	CAP_LENGTH = 12,
	CAP_NOTIFY_MULTIPLIER = 16,
	CAP_COMMON = 1,
	CAP_NOTIFY = 2,
	CAP_DEVICE = 4,

	/* struct virtio_pci_common_cfg, section 4.1.4.3. */
	COMMON_DEVICE_FEATURE_SELECT = 0,
	COMMON_DEVICE_FEATURE = 4,
	COMMON_DRIVER_FEATURE_SELECT = 8,
	COMMON_DRIVER_FEATURE = 12,
	COMMON_CONFIG_VECTOR = 16,
	COMMON_QUEUES = 18,
	COMMON_STATUS = 20,
	COMMON_QUEUE_SELECT = 22,
	COMMON_QUEUE_SIZE = 24,
	COMMON_QUEUE_VECTOR = 26,
	COMMON_QUEUE_ENABLE = 28,
	COMMON_QUEUE_NOTIFY_OFFSET = 30,
	COMMON_QUEUE_DESCRIPTORS = 32,
	COMMON_QUEUE_DRIVER = 40,
	COMMON_QUEUE_DEVICE = 48,
	COMMON_SIZE = 56,
	NO_VECTOR = 0xffff,

	/* Section 2.1. */
	STATUS_ACKNOWLEDGE = 1,
	STATUS_DRIVER = 2,
	STATUS_DRIVER_OK = 4,
	STATUS_FEATURES_OK = 8,
	STATUS_NEEDS_RESET = 64,

	RESET_POLLS = 100000,
};

static uint8_t status(const struct virtio_device *device)
{
	return mmio_read8(device->common + COMMON_STATUS);
}

static void add_status(struct virtio_device *device, uint8_t bits)
{
	mmio_write8(device->common + COMMON_STATUS, status(device) | bits);
}

/*
 * The registers that the first capability of this type describes (the driver prefers the first, 4.1.4.1), and the
 * capability's own offset in *capability.
 */
static volatile uint8_t *find_registers(const struct virtio_device *device, uint8_t type, uint32_t at_least,
					uint32_t *length, unsigned *capability)
{
	const struct pci_function *pci = &device->pci;
	unsigned at = pci_next_capability(pci, CAPABILITY_VENDOR, 0);

	while (at && pci_read8(pci, at + CAP_TYPE) != type)
		at = pci_next_capability(pci, CAPABILITY_VENDOR, at);
	if (!at)
		panic("%s: no virtio capability of type %u (legacy device?)", device->name, type);

	uint64_t size, bar = pci_bar(pci, pci_read8(pci, at + CAP_BAR), &size);
	uint64_t offset = pci_read32(pci, at + CAP_OFFSET);

	*length = pci_read32(pci, at + CAP_LENGTH);
	*capability = at;
	if (*length < at_least || offset + *length > size)
		panic("%s: virtio capability of type %u has %u bytes at 0x%lx of a BAR of 0x%lx", device->name, type,
		      *length, offset, size);
	memory_map_device(bar + offset, *length);
	return (volatile uint8_t *)(bar + offset);
}

static void reset(struct virtio_device *device)
{
	mmio_write8(device->common + COMMON_STATUS, 0);
	for (unsigned polls = 0; status(device) != 0; polls++) {
		if (polls == RESET_POLLS)
			panic("%s: the device does not finish its reset", device->name);
		cpu_relax();
	}
}

static uint64_t offered_features(struct virtio_device *device)
{
	mmio_write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 0);
	uint64_t features = mmio_read32(device->common + COMMON_DEVICE_FEATURE);

	mmio_write32(device->common + COMMON_DEVICE_FEATURE_SELECT, 1);
	return features | (uint64_t)mmio_read32(device->common + COMMON_DEVICE_FEATURE) << 32;
}

/* Section 3.1.1, steps 1 to 6. */
static void negotiate(struct virtio_device *device, uint64_t wanted)
{
	reset(device);
	add_status(device, STATUS_ACKNOWLEDGE);
	add_status(device, STATUS_DRIVER);

	uint64_t offered = offered_features(device);

	if (!(offered & VIRTIO_F_VERSION_1))
		panic("%s: the device does not offer VERSION_1 (features 0x%lx)", device->name, offered);
	device->features = offered & (wanted | VIRTIO_F_VERSION_1);
	mmio_write32(device->common + COMMON_DRIVER_FEATURE_SELECT, 0);
	mmio_write32(device->common + COMMON_DRIVER_FEATURE, (uint32_t)device->features);
	mmio_write32(device->common + COMMON_DRIVER_FEATURE_SELECT, 1);
	mmio_write32(device->common + COMMON_DRIVER_FEATURE, (uint32_t)(device->features >> 32));
	add_status(device, STATUS_FEATURES_OK);
	if (!(status(device) & STATUS_FEATURES_OK))
		panic("%s: the device refuses features 0x%lx", device->name, device->features);
}

bool virtio_open(struct virtio_device *device, const char *name, uint16_t type, uint64_t wanted, bool poll)
{
	uint32_t length;
	unsigned at;

	*device = (struct virtio_device){.name = name};
	if (!pci_find(&device->pci, VENDOR_VIRTIO, (uint16_t)(DEVICE_MODERN + type),
		      (uint16_t)(DEVICE_TRANSITIONAL + type)))
		return false;
	pci_enable(&device->pci);
	device->common = find_registers(device, CAP_COMMON, COMMON_SIZE, &length, &at);
	device->config = find_registers(device, CAP_DEVICE, 0, &device->config_size, &at);
	device->notify = find_registers(device, CAP_NOTIFY, 2, &length, &at);
	device->notify_size = length;
	device->notify_multiplier = pci_read32(&device->pci, at + CAP_NOTIFY_MULTIPLIER);

	negotiate(device, wanted);
	device->polled = poll || !pci_msix_enable(&device->pci);
	if (!device->polled)
		mmio_write16(device->common + COMMON_CONFIG_VECTOR, NO_VECTOR);
	return true;
}

/* Gives the selected queue a vector of its own. False when the device, or we, have none left (4.1.5.1.2). */
static bool route_interrupt(struct virtio_device *device, uint16_t index)
{
	unsigned message;

	if (!irq_allocate_message(&message))
		return false;
	pci_msix_route(&device->pci, index, message);
	mmio_write16(device->common + COMMON_QUEUE_VECTOR, index);
	return mmio_read16(device->common + COMMON_QUEUE_VECTOR) == index;
}

static void write_address(volatile uint8_t *field, const void *address)
{
	/* 64-bit fields are written as two halves (4.1.3.1). */
	mmio_write32(field, (uint32_t)(uintptr_t)address);
	mmio_write32(field + 4, (uint32_t)((uintptr_t)address >> 32));
}

/* Section 4.1.5.1.3. */
void virtio_add_queue(struct virtio_device *device, struct virtqueue *queue, uint16_t index)
{
	volatile uint8_t *common = device->common;

	if (index >= mmio_read16(common + COMMON_QUEUES))
		panic("%s: the device has no queue %u", device->name, index);
	mmio_write16(common + COMMON_QUEUE_SELECT, index);
	uint16_t size = mmio_read16(common + COMMON_QUEUE_SIZE);

	if (size > QUEUE_MAX)
		size = QUEUE_MAX;
	if (!size || size & (size - 1))
		panic("%s: queue %u has %u entries, not a power of two", device->name, index, size);
	mmio_write16(common + COMMON_QUEUE_SIZE, size);

	uint64_t doorbell = (uint64_t)mmio_read16(common + COMMON_QUEUE_NOTIFY_OFFSET) * device->notify_multiplier;

	if (doorbell + 2 > device->notify_size)
		panic("%s: queue %u is notified outside of the notify registers", device->name, index);

	queue->device = device;
	queue->doorbell = device->notify + doorbell;
	queue->index = index;
	queue->size = size;
	queue->used_event = &queue->available.ring[size];
	queue->available_event = (volatile uint16_t *)&queue->used.ring[size];
	for (uint16_t i = 0; i < size; i++)
		queue->descriptors[i].next = (uint16_t)(i + 1);
	queue->free_count = size;
	queue_set_interrupts(queue, !device->polled);

	if (!device->polled && !route_interrupt(device, index))
		device->polled = true;
	write_address(common + COMMON_QUEUE_DESCRIPTORS, queue->descriptors);
	write_address(common + COMMON_QUEUE_DRIVER, &queue->available);
	write_address(common + COMMON_QUEUE_DEVICE, &queue->used);
	mmio_write16(common + COMMON_QUEUE_ENABLE, 1);
}

void virtio_start(struct virtio_device *device)
{
	add_status(device, STATUS_DRIVER_OK);
}

void virtio_check_health(struct virtio_device *device)
{
	uint8_t now = status(device);

	if (now & STATUS_NEEDS_RESET || !(now & STATUS_DRIVER_OK))
		panic("%s: the device needs a reset (status 0x%x)", device->name, now);
}

static void check_config_offset(const struct virtio_device *device, unsigned end)
{
	if (end > device->config_size)
		panic("%s: the device's configuration has %u bytes, not %u", device->name, device->config_size, end);
}

uint8_t virtio_config8(const struct virtio_device *device, unsigned offset)
{
	check_config_offset(device, offset + 1);
	return mmio_read8(device->config + offset);
}

uint32_t virtio_config32(const struct virtio_device *device, unsigned offset)
{
	check_config_offset(device, offset + 4);
	return mmio_read32(device->config + offset);
}

/* Split virtqueues: virtio 1.2, section 2.7. */
#include "cpu.h"
#include "power.h"
#include "virtio.h"

enum {
	DESCRIPTOR_NEXT = 1,
	DESCRIPTOR_WRITE = 2,
	AVAILABLE_NO_INTERRUPT = 1,
	USED_NO_NOTIFY = 1,
};

bool queue_add(struct virtqueue *queue, const struct queue_part *parts, unsigned count, uint16_t token)
{
	if (count > queue->free_count)
		return false;
	uint16_t head = queue->free_head, at = head;

	for (unsigned i = 0; i < count; i++) {
		struct queue_descriptor *descriptor = &queue->descriptors[at];

		descriptor->address = (uintptr_t)parts[i].address;
		descriptor->length = parts[i].length;
		descriptor->flags = (uint16_t)((parts[i].device_writes ? DESCRIPTOR_WRITE : 0) |
					       (i + 1 < count ? DESCRIPTOR_NEXT : 0));
		at = descriptor->next;
	}
	queue->free_head = at;
	queue->free_count -= (uint16_t)count;
	queue->chain_length[head] = (uint16_t)count;
	queue->token[head] = token;
	queue->available.ring[queue->next_available & (queue->size - 1)] = head;
	queue->next_available++;
	return true;
}

/* Whether index passed event when it went from old to new: section 2.7.10. */
static bool passed(uint16_t event, uint16_t new, uint16_t old)
{
	return (uint16_t)(new - event - 1) < (uint16_t)(new - old);
}

void queue_publish(struct virtqueue *queue)
{
	uint16_t old = queue->published, new = queue->next_available;

	if (old == new)
		return;
	/* Descriptors and ring entries before the index that shows them (2.7.13.3.1). */
	__atomic_store_n(&queue->available.index, new, __ATOMIC_RELEASE);
	queue->published = new;

	/* The index before the look at what the device wants (2.7.13.4.1): a store before a load. */
	memory_fence();
	bool notify;

	if (queue->device->features & VIRTIO_F_EVENT_IDX)
		notify = passed(*queue->available_event, new, old);
	else
		notify = !(*(volatile uint16_t *)&queue->used.flags & USED_NO_NOTIFY);
	if (notify)
		mmio_write16(queue->doorbell, queue->index);
}

bool queue_has_answers(const struct virtqueue *queue)
{
	return __atomic_load_n(&queue->used.index, __ATOMIC_ACQUIRE) != queue->last_used;
}

static void set_used_event(struct virtqueue *queue)
{
	/* Off: as far from the next answer as an index gets, so that only a whole lap of it would interrupt. */
	*queue->used_event = (uint16_t)(queue->interrupts ? queue->last_used : queue->last_used - 1);
}

bool queue_take(struct virtqueue *queue, uint16_t *token, uint32_t *length)
{
	/* An empty queue is believed only after a fence: used_event, set below, has to be out before the last look. */
	if (!queue_has_answers(queue)) {
		memory_fence();
		if (!queue_has_answers(queue))
			return false;
	}
	uint16_t answered = __atomic_load_n(&queue->used.index, __ATOMIC_ACQUIRE);

	if ((uint16_t)(answered - queue->last_used) > queue->size)
		panic("%s: queue %u: the used index went from %u to %u", queue->device->name, queue->index,
		      queue->last_used, answered);

	const struct queue_used_element *element = &queue->used.ring[queue->last_used & (queue->size - 1)];
	uint32_t head = element->id;

	if (head >= queue->size || !queue->chain_length[head])
		panic("%s: queue %u: the device returned request %u, which it doesn't have", queue->device->name,
		      queue->index, head);
	*token = queue->token[head];
	*length = element->length;

	uint16_t last = (uint16_t)head;

	for (uint16_t i = 1; i < queue->chain_length[head]; i++)
		last = queue->descriptors[last].next;
	queue->descriptors[last].next = queue->free_head;
	queue->free_head = (uint16_t)head;
	queue->free_count += queue->chain_length[head];
	queue->chain_length[head] = 0;
	queue->last_used++;
	if (queue->device->features & VIRTIO_F_EVENT_IDX)
		set_used_event(queue);
	return true;
}

void queue_set_interrupts(struct virtqueue *queue, bool on)
{
	queue->interrupts = on && !queue->device->polled;
	if (queue->device->features & VIRTIO_F_EVENT_IDX)
		set_used_event(queue);
	else
		*(volatile uint16_t *)&queue->available.flags = queue->interrupts ? 0 : AVAILABLE_NO_INTERRUPT;
	memory_fence(); /* the wish before the caller's last look at the used index (2.7.7.1) */
}

#include "registers.h"

#include "cpu.h"
#include "random.h"
#include "text.h"

enum {
	/* Offsets that requests and answers share; integers are big endian. */
	AT_MAGIC = 0,
	AT_OP = 4,
	AT_ZERO = 5, /* of a request; the status of an answer */
	AT_STATUS = 5,
	AT_REGISTER = 6,
	AT_CLIENT = 8,
	AT_ID = 16,
	AT_VALUE = 24,
	AT_EXPECT = 32, /* of a request */
	AT_SEQUENCE = 32,
	AT_BOOT = 40,

	OP_READ = 1,
	OP_WRITE = 2,
	OP_COMPARE_AND_SWAP = 3,

	STATUS_OK = 0,
	STATUS_BAD_REQUEST = 1,
	STATUS_MISMATCH = 2,

	REGISTERS = 256,
};

static uint64_t registers[REGISTERS];
static uint64_t sequence, boot;

void registers_init(uint64_t seed)
{
	/* The seed tells guests that start at the same count apart; the counter tells starts of one guest apart. */
	boot = random_mix(random_mix(seed + RANDOM_STEP) + read_tsc());
	if (!boot)
		boot = 1;
}

uint64_t registers_answers(void)
{
	return sequence;
}

static uint8_t execute(uint8_t op, uint16_t number, uint64_t value, uint64_t expect)
{
	if (number >= REGISTERS)
		return STATUS_BAD_REQUEST;
	switch (op) {
	case OP_READ:
		return STATUS_OK;
	case OP_WRITE:
		registers[number] = value;
		return STATUS_OK;
	case OP_COMPARE_AND_SWAP:
		if (registers[number] != expect)
			return STATUS_MISMATCH;
		registers[number] = value;
		return STATUS_OK;
	default:
		return STATUS_BAD_REQUEST;
	}
}

bool registers_execute(const uint8_t *request, size_t length, uint8_t *answer)
{
	if (length != REGISTER_REQUEST_SIZE || memcmp(request + AT_MAGIC, "PLXQ", 4) != 0 || request[AT_ZERO] != 0)
		return false;
	uint16_t number = load_be16(request + AT_REGISTER);
	uint8_t status = execute(request[AT_OP], number, load_be64(request + AT_VALUE),
				 load_be64(request + AT_EXPECT));

	memcpy(answer, request, AT_VALUE); /* op, register, client and id go back as they came */
	memcpy(answer + AT_MAGIC, "PLXA", 4);
	answer[AT_STATUS] = status;
	store_be64(answer + AT_VALUE, number < REGISTERS ? registers[number] : 0);
	store_be64(answer + AT_SEQUENCE, ++sequence);
	store_be64(answer + AT_BOOT, boot);
	return true;
}

/*
 * The register protocol, the same that guests/register speaks: 256 registers of 64 bits, whose every answer carries one
 * server-wide sequence number and the number that this server chose when it started.
 */
#ifndef REGISTERS_H
#define REGISTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	REGISTER_REQUEST_SIZE = 40,
	REGISTER_ANSWER_SIZE = 48,
};

void registers_init(uint64_t seed);
uint64_t registers_answers(void);

/*
 * Executes one request and fills in its answer (REGISTER_ANSWER_SIZE bytes). False, and nothing done, when the request
 * is malformed: it gets no answer.
 */
bool registers_execute(const uint8_t *request, size_t length, uint8_t *answer);

#endif

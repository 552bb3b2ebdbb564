// Package register is the small service by which a guest can be held to account: 256 registers of 64 bits, read and
// written over TCP and UDP on one port, where every answer carries a number from one counter and a nonce chosen when the
// server started.
//
// A takeover that forgets something shows: a restarted server has another nonce, a state older than what a client saw
// repeats sequence numbers, a lost write is read back as an older value. [Server] is the workload of the Linux guest and
// the reference for the bare guest, which speaks the same bytes; [Client] is the other end, over one TCP connection or one
// UDP flow. What clients saw is judged by the package history, which is apart so that a guest doesn't carry the checker.
//
// Requests are 40 bytes and answers 48, all integers big-endian:
//
//	request: 0 magic "PLXQ" | 4 op u8 | 5 zero u8 | 6 register u16 | 8 client u64 | 16 id u64 | 24 value u64 | 32 expect u64
//	answer:  0 magic "PLXA" | 4 op u8 | 5 status u8 | 6 register u16 | 8 client u64 | 16 id u64 | 24 value u64 |
//	         32 sequence u64 | 40 boot u64
//
// Over TCP they follow each other on one connection; over UDP each is one datagram. A malformed datagram is dropped, a
// malformed TCP request closes its connection: neither is answered.
//
// What must stay true: every answer, TCP or UDP, takes the next sequence number in the same critical section in which its
// operation is applied, so that the order of the numbers is the order of the operations.
package register

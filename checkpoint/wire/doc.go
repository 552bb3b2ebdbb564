// Package wire is the language that a primary and its standby speak over one connection: framing, messages, and their checks.
// It does no I/O of its own beyond the reader and the writer that it is given, knows no role, and starts no goroutine.
//
// # Frames
//
// Everything is little endian. A frame is a header of 32 bytes and a payload:
//
//	 0  u32  magic "PLXW"
//	 4  u16  version of the protocol (Version)
//	 6  u8   type; zero is invalid, so that a run of zero bytes is never a frame
//	 7  u8   flags; must be zero in this version
//	 8  u32  length of the payload; bounded per type before a byte of it is read
//	12  u32  CRC32C of the header (with this field zero) and the payload
//	16  u64  session: the copying to one twin, from its first round to its end, that the frame belongs to; zero where it belongs to none
//	24  u64  epoch that the frame belongs to; zero where it belongs to none
//
// TLS already protects the connection against an attacker. The checksum is there for what goes wrong on a host: a staging
// page that flips a bit between capture and apply must not become the twin's memory.
//
// # A connection
//
//	active                                    twin
//	   │ ── Hello ──────────────▶ ◀── Hello ── │  who each is; the active one's machine
//	   │ ── HelloAck ────────▶ ◀── HelloAck ── │  or Refuse, with the reason
//	   │ ── Role ─────────────▶ ◀────── Role ── │  what the role machines tell one another, at any time
//	   │ ── EpochBegin(round) Pages… EpochEnd ▶ │  pre-copy: applied as it arrives
//	   │ ◀────────────────────────── Ack round │  paces the rounds, promises nothing
//	   │            … more rounds …            │
//	   │ ── EpochBegin(checkpoint n) ─────────▶ │  staged
//	   │ ── State…  Pages…  EpochEnd(n) ──────▶ │  verified whole
//	   │ ◀────────────────────────────── Ack n │  then applied
//	   │ ── EpochBegin(checkpoint n+1) … ─────▶ │
//	   │ ◀──────────── Heartbeat ────────────▶ │  between any two frames
//	   │ ── Bye ─────────────▶ ◀─────── Bye ── │  the end, with its reason
//
// Which end dialled says nothing about who is active.
//
// # The receiver of epochs
//
//	           EpochBegin                Pages, State
//	┌──────┐ ─────────────▶ ┌─────────┐ ─────┐
//	│ idle │                │ staging │ ◀────┘
//	└──────┘ ◀───────────── └─────────┘
//	           EpochEnd: counts, lengths and digest agree → whole
//
// Any other frame in a state, a page frame number that does not ascend, a count that is not the announced one: the
// receiver (Assembler) reports an error and the connection ends. Nothing of a checkpoint that is not whole is ever used.
// Only a new session may begin while an epoch is open: the old one was broken off.
//
// # What must stay true
//
// A decoder never reads past its input, never allocates by a number that the peer chose without a bound, and never panics.
// Zero pages travel as runs without data. Encoding and decoding of Pages, State, EpochBegin, EpochEnd, Ack and Heartbeat do not allocate.
package wire

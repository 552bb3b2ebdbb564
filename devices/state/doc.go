// Package state writes down and reads back the state of a machine's parts: fixed layouts, little endian, appended to a
// buffer that the caller reuses. It is used inside every checkpoint's pause, so encoding neither allocates (once the buffer has
// grown) nor reflects.
//
// State is a sequence of sections. A section has a name, a version and a length, so that a reader can tell what it holds
// and refuses what it does not know, instead of reading one part's bytes as another's.
//
// The bytes reach a Decoder from a peer or a file. A Decoder never reads outside of its input and never allocates more
// than the input could fill; its first error sticks, every later read gives zero, and Finish reports it.
package state

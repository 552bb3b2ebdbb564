// Package primary turns a running machine into a stream of epochs for its twin.
//
// An Engine belongs to one machine; it ships one session at a time, each to one twin. A session copies all memory in rounds while the
// guest runs, until what is left is small, and says so (SyncReady). From the first Capture on it captures epochs at its own pace:
//
//	          capturer                              shipper
//	wait for a free area and a reason
//	freeze ─ state ─ dirty log ─ copy ─ close ─ thaw
//	report Captured ────────── area ──────────────▶ encode, send
//	wait …                                              │
//	        ◀──────────────────────── area free ────────┘
//
// There are two areas: epoch n+1 may be captured while n is in flight, and then the next capture waits. Staging never grows and
// nothing is dropped: an epoch that is larger than an area keeps the guest frozen while it is shipped piece by piece.
//
// A reason for an epoch is, whichever comes first: the interval is over; or output is held, the last epoch is committed and the minimum
// interval has passed. While the guest does almost nothing and sends nothing, the interval grows.
//
// What must stay true: the role machine decides. The engine neither holds nor releases output; it closes epochs in the netbuffer,
// while the guest stands still, and reports. Captured(n) is reported before the last of n is sent, so before it can be acknowledged. A
// capture that fails leaves the guest thawed, and its epoch is never completed at the twin.
package primary

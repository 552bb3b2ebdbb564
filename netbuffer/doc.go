// Package netbuffer is the way of a guest's frames to the network: a tap on a bridge, behind a buffer that holds what the
// guest sends until the checkpoint that explains it is safe.
//
// [Buffer] is the pure part: frames go in, epochs are closed, and frames come out in order when their epoch is released.
// [Tap] is the kernel's end, [Port] both together: it satisfies the backend that devices/virtio's network card declares.
// [Learner] knows the guest's addresses so that a takeover can announce where they are now, and [Recorder] writes what
// really went over an interface to a pcap file, for tests that prove the first rule below.
//
// The network card calls Send, Receive and OnSpace. The checkpoint code calls Hold, CloseEpoch (vCPUs and devices
// frozen), Release (the twin has acknowledged), Passthrough (there is no twin, and the arbiter agrees) and Fence (somebody
// else runs the guest now). Nothing else may.
//
// What must stay true:
//   - Output commit: a frame sent in an epoch never reaches the tap before that epoch was released, or Passthrough was
//     called. A Buffer starts holding.
//   - When Hold or Fence has returned, no further frame leaves, not even one that was about to.
//   - A fence is for ever.
//   - Frames leave in the order in which they were sent, whole, and none is lost between Send's true and the tap, unless
//     the tap refuses that frame as malformed.
//   - Nothing is allocated per frame, and memory is bounded: a full buffer refuses, and the guest's queue waits.
package netbuffer

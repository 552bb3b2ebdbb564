// Package arbiter keeps the role record of each VM in etcd: who is active, who may take over, in which generation. It stores and
// compares; it decides nothing. What a node may do with an answer is checkpoint/role's business.
//
// Every change is one compare-and-swap on the whole record: it takes effect only if the stored value is, byte for byte, the record
// that the caller expects. Records carry a revision that every swap raises, so an old one never comes back and a delayed
// request can't land in a later world. There are no leases and no time-outs on the record: safety never depends on time.
//
// A swap has three outcomes, and the third is the one that matters: it took effect, or another record was found (both are answers, see
// Client.Swap), or nothing is known (ErrUnanswered: the request or its reply was lost, it may have taken effect, and may yet do so).
//
// Client talks to any etcd. Witness is a small etcd of our own, for a pair that has none: one member, data on disk.
package arbiter

// Package standby holds a twin's copy of a guest: it receives epochs, verifies them, and keeps an image from which the guest can run.
//
//	            frames                    Whole(n)              Acknowledge? yes
//	┌─────────┐ ─────▶ ┌─────────┐ ───────────────▶ ┌────────┐ ──────────────▶ ┌─────────┐
//	│  idle   │        │ staging │                  │ staged │                 │ applied │ = the image at n
//	└─────────┘ ◀───── └─────────┘                  └────────┘ ──────────────▶ └─────────┘
//	         next epoch                                        no: n is dropped
//
// Pages of a pre-copy round go into the image as they arrive: it is of no use before the first checkpoint anyway. Pages of a checkpoint
// wait in staging until all of it has arrived and was verified. Then it is offered (Receive returns it as whole), and the role
// machine says whether to acknowledge it; only then, and always then, it is applied. So the image is that of the newest
// acknowledged checkpoint, or on the way to it with everything needed at hand, and a takeover always finds one.
//
// A Receiver belongs to one machine that has not run. Receive and Apply are called by the goroutine that reads the link; Begin, Drop
// and TakeOver by the one that carries out the role machine's actions.
//
// What must stay true: nothing of a checkpoint reaches the image before all of it was verified. Nothing outside the guest's memory is
// ever written, whatever the peer sends. Staging is bounded by the guest's memory and shrinks after an unusually large epoch.
package standby

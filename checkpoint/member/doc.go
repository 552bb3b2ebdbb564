// Package member is one VM's life on one host, in whatever role: it boots the guest or waits for a peer that has it, protects it, takes
// it over, gives it up. It decides nothing of this itself. The role machine (checkpoint/role) decides; a Member feeds it events and
// carries out its actions with the packages around it:
//
//	          ┌──────────────── Member: one loop ────────────────┐
//	mailbox ─▶│ event ─▶ role.Machine ─▶ actions, in their order │
//	   ▲      └──┬────────────┬──────────────┬──────────────┬────┘
//	   │      outputs     primary.Engine  standby.Receiver  arbiter
//	   │      hold,       capture, ship   apply, load       swap, read
//	   │      release         │              │              │
//	   └── link reader, engine, guest, arbiter: report what has happened
//
// cmd builds a Config, with a Host that knows how to build machines, and calls Run.
//
// What must stay true: only the loop calls the role machine and carries out actions, each one whole before the next. Nothing
// that reports to the loop waits for it, except the link's reader with frames whose order against actions matters (a status, a whole
// checkpoint), and that one gives up when its connection is dropped. A tick is delivered before anything that waited
// while the process stood still. Events of a connection that was dropped are never delivered.
package member

// Package control is the socket through which an operator reaches one running machine: HTTP over a Unix socket, JSON in
// and out. Server answers on the machine's side, Client asks.
//
//	GET  /status                  what the machine is doing (Status)
//	POST /pause, /resume          stop and restart the guest
//	POST /snapshot {"path": P}    write a snapshot to P, an absolute path on the machine's host
//	POST /power-button            ask the guest to power off
//	POST /quit                    end the machine as if its power had been cut
//
// An answer with a status from 400 on carries {"error": "..."}.
//
// Package cmd connects a Server with a vmm.Machine; nothing else calls it. The socket belongs to the user who started the
// machine, and nobody else may connect: whoever can holds the machine in his hands.
package control

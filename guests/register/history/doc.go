// Package history judges what clients of a register server saw: whether it was one server that never forgot anything.
//
// [History] collects every attempt of every client (it is their register.Recorder), counts what can be seen to be wrong at
// once, and tells at any moment how things stand. [History.Check] gives the verdict over the whole: sequence numbers,
// boot nonce, lost writes, and linearizability of every register. [Load] makes the traffic.
//
// What must stay true: an attempt without an answer may have been carried out at any time from its call on, once or never.
// It is never counted as an error and never assumed to have failed.
package history

// Package checkpoint is what the two sides of a protected pair share: the mutually authenticated link, staging memory, and
// statistics. The packages below it do the work:
//
//	member/    one VM's life on one host: feeds the role machine events and carries out its actions
//	role/      decides: who may run, who may release (pure)
//	arbiter/   the role record in etcd
//	primary/   captures epochs of a running machine and ships them
//	standby/   receives, verifies, acknowledges and applies them; makes a machine of the last one
//	wire/      frames on the link
//	tlstest/   certificates for tests and for the lab
//
// cmd calls member; nothing else needs to call below it. Machines and netbuffers are seen through small interfaces that
// primary, standby and member declare where they use them.
//
// What must stay true: guest memory and staging are never on the Go heap; nothing on the path of an epoch allocates or takes a
// lock per page; every goroutine is waited for by what started it.
package checkpoint

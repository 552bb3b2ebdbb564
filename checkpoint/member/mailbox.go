package member

import (
	"sync"

	"github.com/pollux-ha/pollux/checkpoint/role"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// message is something for the loop. Which fields count depends on kind.
type message struct {
	kind  messageKind
	event role.Event
	conn  *conn
	wait  bool // the connection's reader waits for this to be handled

	hello *wire.Hello // prepare
	reply chan error  // prepare, operator
	guest *guest      // ended
	err   error       // ended, lost
}

type messageKind uint8

const (
	kindEvent   messageKind = iota + 1 // an event for the role machine; with conn: of that connection
	kindPrepare                        // get ready to be the twin of hello's machine
	kindUp                             // conn stands
	kindLost                           // conn has ended
	kindEnded                          // guest's Run has returned
)

// mailbox is a queue that never blocks who puts something in: the loop may be waiting for that one to end. What is in it is bounded
// by its senders: each has a bounded number of things under way.
type mailbox struct {
	ready chan struct{} // a value after put

	mu     sync.Mutex
	queue  []message
	closed bool
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

// put appends a message. False: nobody will read it any more.
func (b *mailbox) put(m message) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.queue = append(b.queue, m)
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return true
}

// take returns all messages, and keeps spare, which must be of no use to the caller any more, for the next ones.
func (b *mailbox) take(spare []message) []message {
	clear(spare)
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue = spare[:0]
	return q
}

// close refuses further messages and returns what is left.
func (b *mailbox) close() []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.queue
}

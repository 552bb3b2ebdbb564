package role

import (
	"errors"
	"fmt"
)

// Node is the name of a host, unique among the hosts that share an arbiter.
type Node string

// Member is one run of Pollux on one host. A host that restarts is another
// member: what it held in memory is gone, so whatever was promised to its
// predecessor must not be taken for a promise to it.
type Member struct {
	Node Node `json:"node,omitempty"`
	// Incarnation is drawn at random by the caller whenever the process
	// starts. Zero is invalid; the zero Member means nobody.
	Incarnation uint64 `json:"incarnation,omitempty"`
}

// IsZero reports whether m is nobody.
func (m Member) IsZero() bool { return m == Member{} }

// String renders m as "host#1f", or "none".
func (m Member) String() string {
	if m.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%s#%x", m.Node, m.Incarnation)
}

// Record is what the arbiter knows of one VM: {generation, active, standby}
// and a revision. The zero Record stands for a VM that the arbiter has never
// heard of.
//
// A swap replaces the whole record, and only if the whole record is still the
// expected one. The revision grows by one with every swap, so a record never
// comes back: a request that the network delayed finds its expectation gone
// and can't land in a later world that merely looks the same. For the same
// reason a record is never deleted.
type Record struct {
	Revision   uint64 `json:"revision"`   // one more with every swap
	Generation uint64 `json:"generation"` // one more with every copy that gets the right to run
	Active     Member `json:"active"`     // may run the guest
	Standby    Member `json:"standby"`    // may replace the active member
}

// IsZero reports whether r stands for a VM without a record.
func (r Record) IsZero() bool { return r == Record{} }

// String renders r as "r7 {2, a#1, b#2}".
func (r Record) String() string {
	if r.IsZero() {
		return "no record"
	}
	return fmt.Sprintf("r%d {%d, %v, %v}", r.Revision, r.Generation, r.Active, r.Standby)
}

// ErrRecord is wrapped by the errors of Record.Validate.
var ErrRecord = errors.New("invalid role record")

// Validate returns an error that wraps ErrRecord when no Machine can have
// written r. Records come from a store that people can edit.
func (r Record) Validate() error {
	if r.IsZero() {
		return nil
	}
	switch {
	case r.Revision == 0:
		return fmt.Errorf("%w: revision is zero", ErrRecord)
	case r.Generation == 0:
		return fmt.Errorf("%w: generation is zero", ErrRecord)
	case r.Generation > r.Revision:
		return fmt.Errorf("%w: generation %d is beyond revision %d", ErrRecord, r.Generation, r.Revision)
	}
	if err := r.Active.validate(); err != nil {
		return fmt.Errorf("%w: active %w", ErrRecord, err)
	}
	if r.Standby.IsZero() {
		return nil
	}
	if err := r.Standby.validate(); err != nil {
		return fmt.Errorf("%w: standby %w", ErrRecord, err)
	}
	if r.Standby.Node == r.Active.Node {
		return fmt.Errorf("%w: active and standby are both on %q", ErrRecord, r.Active.Node)
	}
	return nil
}

// maxNode bounds a node's name, in bytes; it is DNS's limit for a host name.
const maxNode = 253

func (m Member) validate() error {
	switch {
	case m.Node == "":
		return errors.New("node has no name")
	case len(m.Node) > maxNode:
		return fmt.Errorf("node's name has %d bytes, the limit is %d", len(m.Node), maxNode)
	case m.Incarnation == 0:
		return fmt.Errorf("node %q has incarnation zero", m.Node)
	}
	return nil
}

// next returns the record that follows r in the same generation.
func (r Record) next(standby Member) Record {
	return Record{Revision: r.Revision + 1, Generation: r.Generation, Active: r.Active, Standby: standby}
}

// succeed returns the record that follows r with a new generation, in which m
// is active and nobody stands by.
func (r Record) succeed(m Member) Record {
	return Record{Revision: r.Revision + 1, Generation: r.Generation + 1, Active: m}
}

// newer reports whether r was written after other. Generation and revision
// grow together at one arbiter, so that either order is right there. Without
// an arbiter two nodes count revisions apart: the generation decides, and in
// the end the name, so that two active nodes never both stay.
func (r Record) newer(other Record) bool {
	switch {
	case r.Generation != other.Generation:
		return r.Generation > other.Generation
	case r.Revision != other.Revision:
		return r.Revision > other.Revision
	default:
		return r.Active.Node > other.Active.Node
	}
}

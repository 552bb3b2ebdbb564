package arbiter

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/checkpoint/role"
)

var (
	// ErrUnanswered is wrapped by the error of a request without an answer. A swap may have taken effect, or may yet.
	ErrUnanswered = errors.New("the arbiter does not answer")
	// ErrRecord is wrapped by the error for a stored value that Pollux has not written. A person must look at it.
	ErrRecord = errors.New("not a role record")
)

// encode is the one way to write a record: swaps compare bytes.
func encode(r role.Record) (string, error) {
	if err := r.Validate(); err != nil {
		return "", err
	}
	if r.IsZero() {
		return "", fmt.Errorf("%w: a record is never deleted", ErrRecord)
	}
	b, err := json.Marshal(r)
	return string(b), err
}

// decode reads a stored value. A person can have written it with etcdctl, so it is checked like any input.
func decode(b []byte) (role.Record, error) {
	var r role.Record
	if err := json.Unmarshal(b, &r); err != nil {
		return role.Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	again, err := encode(r)
	if err != nil {
		return role.Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if again != string(b) {
		return role.Record{}, fmt.Errorf("%w: %.200q is not how Pollux writes it, which is %s", ErrRecord, b, again)
	}
	return r, nil
}

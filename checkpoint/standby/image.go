package standby

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/checkpoint"
	"github.com/pollux-ha/pollux/checkpoint/wire"
)

// Apply brings the image to the checkpoint that Receive returned last, which was acknowledged. It does nothing if the copy was dropped
// meanwhile, or a takeover has applied it already.
func (r *Receiver) Apply(epoch uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.staged != epoch {
		return nil
	}
	return r.apply()
}

// apply writes the staged checkpoint into the image; the caller holds mu. It fails only if staging was corrupted since it was
// verified, and then there is no image any more.
func (r *Receiver) apply() error {
	begin := time.Now()
	epoch := r.staged
	r.staged, r.applied = 0, 0
	for at := 0; at < r.used; {
		n := int(binary.LittleEndian.Uint64(r.staging[at:]))
		if n < 0 || n > r.used-at-8 {
			return fmt.Errorf("apply checkpoint %d: %w: a frame of %d bytes at %d of %d in staging", epoch, wire.ErrFrame, n, at, r.used)
		}
		pages, err := wire.ParsePages(r.staging[at+8 : at+8+n])
		if err == nil {
			err = r.write(pages)
		}
		if err != nil {
			return fmt.Errorf("apply checkpoint %d: %w", epoch, err)
		}
		at = (at + 8 + n + 7) &^ 7
	}
	if r.used > keepStaging {
		if err := checkpoint.Trim(r.staging[keepStaging:]); err != nil {
			return fmt.Errorf("apply checkpoint %d: %w", epoch, err)
		}
	}
	// The buffers trade places: the next epoch's state must not overwrite this one's before it is whole.
	r.state, r.image = r.image[:0], r.state
	r.applied = epoch
	r.lastApply = time.Since(begin)
	r.stats.Record(checkpoint.PhaseApply, r.lastApply)
	r.stats.Commit(epoch)
	return nil
}

var zeroPage [wire.PageSize]byte

// write writes pages into guest memory. It doesn't mark them dirty: this machine has not run and is not captured before it has taken
// over, and a sync begins with all of memory.
func (r *Receiver) write(pages wire.Pages) error {
	for run := range pages.Runs {
		target, err := r.target(run)
		if err != nil {
			return err
		}
		if run.Codec == wire.CodecRaw {
			copy(target, run.Data)
			continue
		}
		for len(target) > 0 {
			// To write zeros over zeros would make the host allocate the page.
			if page := target[:wire.PageSize]; !bytes.Equal(page, zeroPage[:]) {
				clear(page)
			}
			target = target[wire.PageSize:]
		}
	}
	return nil
}

// TakeOver finishes the image at the given checkpoint and loads its state: the machine can run. It waits for an Apply under way.
// After it, or its failure, nothing more is received.
func (r *Receiver) TakeOver(epoch uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session = 0
	if r.staged == epoch && epoch != 0 {
		if err := r.apply(); err != nil {
			return fmt.Errorf("take over: %w", err)
		}
	}
	if epoch == 0 || r.applied != epoch {
		return fmt.Errorf("take over from checkpoint %d: %w: the image is at %d", epoch, ErrNoCopy, r.applied)
	}
	if err := r.machine.LoadState(r.image); err != nil {
		return fmt.Errorf("take over from checkpoint %d: %w", epoch, err)
	}
	return nil
}

package role

// The invariants of docs/roles.md, checked where the model makes them break:
// at every output that leaves (leave), at every record that lands (land), at
// every takeover and boot, and after every step (check).

// ancestor reports whether history x contains history a.
func (r *rig) ancestor(a, x hist) bool {
	for r.depth[x] > r.depth[a] {
		x = r.parent[x]
	}
	return a == x
}

// leave lets the output of one step out of node i.
func (r *rig) leave(i int, at hist) {
	h := &r.hosts[i]
	name := nodeNames[i]
	r.logf("  output %d leaves %s in generation %d", at, name, h.gen)
	switch owner := &r.ownerOf[h.gen]; *owner {
	case 0:
		*owner = h.run
	case h.run:
	default:
		r.fail("I1: %s releases in generation %d, but so did run %d", name, h.gen, *owner)
	}
	switch {
	case r.ancestor(r.tip, at):
		r.tip = at
	case r.ancestor(at, r.tip):
		// Late, but part of what everybody knows.
	case r.ended(at):
		// As late as a frame that the network has kept.
	default:
		r.fail("I1: %s releases %d, which contradicts %d", name, at, r.tip)
	}
	if !h.open {
		if twin := h.st.other.Incarnation; !r.ancestor(at, r.heldBy[twin]) {
			r.fail("I2: %s releases %d, which its twin has never held", name, at)
		}
	}
	if r.rec.Generation > h.gen && h.woke > r.moved {
		r.fail("I1: %s has slept, was replaced, and releases %d", name, at)
	}
}

// end notes that history t won't go on: a boot from disks starts another one.
func (r *rig) end(t hist) {
	switch {
	case r.ended(t):
	case r.ntrunks == maxTrunks:
		r.full = true
	default:
		r.trunks[r.ntrunks] = t
		r.ntrunks++
	}
}

// ended reports whether a step was known, or committed, when a boot from disks
// ended its history. A slow primary may have got its twin's acknowledgement
// before, and nothing but time could make it release before.
func (r *rig) ended(at hist) bool {
	for _, t := range r.trunks[:r.ntrunks] {
		if r.ancestor(at, t) {
			return true
		}
	}
	return false
}

// release lets out what node i holds of the epochs up to n.
func (r *rig) release(i int, n Epoch) {
	h := &r.hosts[i]
	if n == ^Epoch(0) {
		h.open = true // solo is granted before, not after
	}
	k := uint8(0)
	for ; k < h.nheld && h.held[k].epoch <= n; k++ {
		r.leave(i, h.held[k].at)
	}
	copy(h.held[:], h.held[k:h.nheld])
	clear(h.held[h.nheld-k : h.nheld])
	h.nheld -= k
}

// land makes rec the record, on behalf of node i.
func (r *rig) land(i int, rec Record) {
	old := r.rec
	r.rec = rec
	if rec.Generation >= maxGens {
		r.full = true
		r.rec = old
		return
	}
	if !rec.Standby.IsZero() {
		twin := uint8(rec.Standby.Incarnation)
		r.paired[rec.Generation] = twin
		if !r.ancestor(r.tip, r.heldBy[twin]) {
			r.fail("I3: %v is entitled without ever having held output %d", rec.Standby, r.tip)
		}
	}
	if rec.Generation == old.Generation {
		return
	}
	r.moved = r.now
	if me := memberOf(i, r.hosts[i].run); old.Active == me && rec.Active == old.Standby {
		r.handovers++
	}
	if old.IsZero() || rec.Active == old.Standby {
		return
	}
	// Somebody wants to boot from disks. No copy may be left that could go on.
	for k := range r.hosts {
		h := &r.hosts[k]
		if h.run == 0 {
			continue
		}
		switch me := memberOf(k, h.run); {
		case me == old.Standby && h.copied:
			r.fail("I3: %v boots from disks while %v holds the state", rec.Active, me)
		case me == old.Active && h.guest && me != rec.Active:
			r.fail("I3: %v boots from disks while %v runs the guest", rec.Active, me)
		}
	}
}

func (r *rig) takeOver(i int, a *Action) {
	h := &r.hosts[i]
	switch {
	case !h.copied || h.copyEpoch != a.Epoch:
		r.fail("I3: %s takes over from %d, which it doesn't hold", nodeNames[i], a.Epoch)
		return
	case !r.ancestor(r.tip, h.copyAt):
		r.fail("I3: %s takes over from %d, but output %d has left", nodeNames[i], h.copyAt, r.tip)
	}
	r.takeovers++
	r.tip = h.copyAt // whatever leaves from now on has to agree with this
	r.run(i, a.Generation, h.copyAt, a.Epoch)
}

func (r *rig) boot(i int, a *Action) {
	if r.nhist == maxHistory {
		r.full = true
		return
	}
	r.boots++
	r.end(r.tip)
	for g := range a.Generation {
		r.end(r.heldBy[r.paired[g]])
	}
	at := r.nhist
	r.nhist++
	r.parent[at], r.depth[at] = 0, 1
	r.tip = at // a new history; the old one grows no more
	r.run(i, a.Generation, at, 0)
}

func (r *rig) run(i int, gen uint64, at hist, epoch Epoch) {
	h := &r.hosts[i]
	h.guest, h.paused, h.frozen, h.capture, h.off = true, false, false, false, false
	h.gen, h.head, h.epoch = gen, at, epoch
	h.copied, h.nheld = false, 0
}

// check is called after every move.
func (r *rig) check() {
	for i := range r.hosts {
		h := &r.hosts[i]
		if h.run == 0 {
			continue
		}
		me := memberOf(i, h.run)
		if h.guest && h.open && (r.rec.Active != me || r.rec.Generation != h.gen || !r.rec.Standby.IsZero()) {
			r.fail("I2: %v holds nothing back, but the arbiter says %v", me, r.rec)
		}
		if r.rec.Standby == me && h.copied && !r.ancestor(r.tip, h.copyAt) {
			r.fail("I3: %v may take over from %d, but output %d has left", me, h.copyAt, r.tip)
		}
		if h.guest != h.st.phase.Active() && h.st.phase != PhaseStopped {
			r.fail("%v is %v, but guest=%v", me, h.st.phase, h.guest)
		}
	}
}

// running counts the copies that run and whose word counts.
func (r *rig) running() (n, node int) {
	for i := range r.hosts {
		if h := &r.hosts[i]; h.run != 0 && h.guest && !h.paused && !h.off && !h.asleep {
			n, node = n+1, i
		}
	}
	return n, node
}

// protected reports whether one node runs the guest, protected by the other.
func (r *rig) protected() bool {
	n, i := r.running()
	if n != 1 {
		return false
	}
	a, b := &r.hosts[i], &r.hosts[1-i]
	return a.st.phase == PhaseProtected && b.st.phase == PhaseStandby && b.copied &&
		r.rec.Active == memberOf(i, a.run) && r.rec.Standby == memberOf(1-i, b.run)
}

package role

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestTranscripts tells the races of the role protocol as stories: each file
// in testdata is a sequence of things that happen to the model and what the
// machines make of them. Run with -rewrite after a change, and read the
// difference.
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newStory(guardNone)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := s.tell(d.Cmd, d.CmdArgs)
			if err != nil {
				d.Fatalf(t, "%v", err)
			}
			return out
		})
	})
}

// retell plays a transcript with a guard switched off and returns all output.
func retell(t *testing.T, path string, off guard) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	s, last := newStory(off), ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "----" {
			cmd, args, err := datadriven.ParseLine(last)
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			out, err := s.tell(cmd, args)
			if err != nil {
				out = err.Error() // the story took another turn
			}
			all.WriteString(out)
		}
		last = line
	}
	return all.String()
}

// story is a model that is told what happens, and tells what comes of it.
type story struct {
	r   *rig
	out strings.Builder
}

func newStory(off guard) *story {
	s := &story{}
	s.open(Arbitrated, off)
	return s
}

func (s *story) open(a Arbiter, off guard) {
	cfg := simConfig(a)
	cfg.StatusTicks = 1000 // a status when something changes, and no more
	s.r = newRig(cfg, off)
	s.r.reset()
	s.r.trace = s.note
}

// note writes a line of the trace, but not the statuses on their way out: they
// are seen when they arrive.
func (s *story) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if strings.Contains(line, "-> send") {
		return
	}
	s.out.WriteString(line)
	s.out.WriteByte('\n')
}

// tell makes one thing happen. The commands:
//
//	arbiter-mode none|unsafe     start over without an arbiter
//	protect                      start over, up to a protected pair
//	calm [n]                     let all that is under way run its course
//	show                         tell where everybody stands
//	a|b MOVE [K]                 a move of the model at that node; see moveNames
//	a|b EVENT [key=value ...]    an event that the model wouldn't produce
//	a|b get status|checkpoint|ack
//	                             a message arrives: of several statuses the
//	                             newest, of the others the first
//	arbiter WHAT a|b [first]     the newest (or first) request of a node:
//	                             "does" it, "answers" (after doing it, if not
//	                             yet done), "loses" it
//	arbiter down|up
//	record KEY=VALUE ...         an operator edits the record
//	connect                      both nodes connect and hear of it
func (s *story) tell(cmd string, args []datadriven.CmdArg) (string, error) {
	s.out.Reset()
	var err error
	switch cmd {
	case "arbiter-mode":
		mode := map[string]Arbiter{"none": Unarbitrated, "unsafe": Unsafe, "etcd": Arbitrated}[args[0].Key]
		s.open(mode, s.r.m.off)
	case "protect":
		s.r.trace = nil
		s.r.reset()
		s.r.repair()
		for range 20 {
			s.r.try(move{kind: moveDeliver})
			s.r.try(move{kind: moveDeliver, node: 1})
		}
		s.r.trace = s.note
		s.show()
	case "calm":
		s.calm()
	case "show":
		s.show()
	case "connect":
		err = s.moves(move{kind: moveConnect}, move{kind: moveHear}, move{kind: moveHear, node: 1})
	case "record":
		s.edit(args)
	case "arbiter":
		err = s.arbiter(args)
	case "a", "b":
		node := cmd[0] - 'a'
		switch args[0].Key {
		case "get":
			err = s.get(node, args[1].Key)
		default:
			if err = s.move(args, node); err != nil {
				err = s.event(int(node), args)
			}
		}
	default:
		err = fmt.Errorf("unknown command %q", cmd)
	}
	if s.r.violation != "" {
		s.r.violation = "" // it has been traced; the story goes on
	}
	return s.out.String(), err
}

func (s *story) moves(list ...move) error {
	for _, mv := range list {
		if !s.r.try(mv) {
			return fmt.Errorf("%v is not possible now", mv.kind)
		}
	}
	return nil
}

func (s *story) move(args []datadriven.CmdArg, node uint8) error {
	arg := 0
	if len(args) > 1 {
		var err error
		if arg, err = strconv.Atoi(args[1].Key); err != nil {
			return fmt.Errorf("argument of %s: %w", args[0].Key, err)
		}
	}
	for k, name := range moveNames {
		if name == args[0].Key {
			return s.moves(move{kind: moveKind(k), node: node, arg: uint8(arg)})
		}
	}
	return fmt.Errorf("unknown move %q", args[0].Key)
}

// get delivers a message of one kind to a node.
func (s *story) get(node uint8, kind string) error {
	want := map[string]messageKind{"status": messageStatus, "checkpoint": messageCheckpoint, "ack": messageAck}[kind]
	for k := uint8(0); k < s.r.nnet[node]; k++ {
		if m := &s.r.net[node][k]; m.kind != want || m.conn != s.r.hosts[node].conn {
			continue
		}
		if want == messageStatus && s.later(node, k) {
			s.r.removeMessage(int(node), k)
			k--
			continue
		}
		return s.moves(move{kind: moveDeliver, node: node, arg: k})
	}
	return fmt.Errorf("no %s is on the way to %s", kind, nodeNames[node])
}

// later reports whether a status behind message k is on the way to node.
func (s *story) later(node, k uint8) bool {
	for k++; k < s.r.nnet[node]; k++ {
		if s.r.net[node][k].kind == messageStatus {
			return true
		}
	}
	return false
}

func (s *story) arbiter(args []datadriven.CmdArg) error {
	switch args[0].Key {
	case "down":
		return s.moves(move{kind: moveArbiterDown})
	case "up":
		return s.moves(move{kind: moveArbiterUp})
	}
	k := -1
	for i, q := range s.r.asks[:s.r.nasks] {
		if string(nodeNames[q.node]) == args[1].Key && (k < 0 || len(args) < 3) {
			k = i
		}
	}
	if k < 0 {
		return fmt.Errorf("nothing of %s is on the way to the arbiter", args[1].Key)
	}
	arg := uint8(k)
	switch args[0].Key {
	case "does":
		return s.moves(move{kind: moveExecute, arg: arg})
	case "loses":
		return s.moves(move{kind: moveLoseAsk, arg: arg})
	case "answers":
		if !s.r.asks[k].done {
			if err := s.moves(move{kind: moveExecute, arg: arg}); err != nil {
				return err
			}
		}
		return s.moves(move{kind: moveAnswer, arg: arg})
	}
	return fmt.Errorf("the arbiter can't %q", args[0].Key)
}

// calm lets messages flow until nothing changes any more, without telling.
func (s *story) calm() {
	s.r.trace = nil
	for range 40 {
		s.r.round()
	}
	s.r.trace = s.note
	s.show()
}

func (s *story) show() {
	for i := range s.r.hosts {
		h := &s.r.hosts[i]
		if h.run == 0 {
			s.note("%s is dead", nodeNames[i])
			continue
		}
		line := fmt.Sprintf("%v is %v", memberOf(i, h.run), h.st.phase)
		if h.guest {
			line += fmt.Sprintf(", runs the guest in generation %d", h.gen)
			if h.paused {
				line += ", paused"
			}
			if h.open {
				line += ", holds nothing back"
			}
		}
		if h.copied {
			line += fmt.Sprintf(", holds checkpoint %d", h.copyEpoch)
		}
		s.note("%s", line)
	}
	s.note("the arbiter says %v", s.r.rec)
}

// values collects key=value arguments; numbers only, but for nodes.
func values(args []datadriven.CmdArg) (numbers map[string]uint64, words map[string]string) {
	numbers, words = map[string]uint64{}, map[string]string{}
	for _, a := range args {
		v := ""
		if len(a.Vals) > 0 {
			v = a.Vals[0]
		}
		words[a.Key] = v
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			numbers[a.Key] = n
		}
	}
	return numbers, words
}

// member reads "a#1".
func member(s string) Member {
	name, run, ok := strings.Cut(s, "#")
	if !ok {
		return Member{}
	}
	n, _ := strconv.ParseUint(run, 10, 64)
	return Member{Node: Node(name), Incarnation: n}
}

func record(n map[string]uint64, w map[string]string) Record {
	return Record{
		Revision: n["revision"], Generation: n["generation"],
		Active: member(w["active"]), Standby: member(w["standby"]),
	}
}

func (s *story) edit(args []datadriven.CmdArg) {
	s.r.rec = record(values(args))
	s.note("an operator makes it %v", s.r.rec)
}

// event gives node i an event as told, however strange.
func (s *story) event(i int, args []datadriven.CmdArg) error {
	n, w := values(args[1:])
	me, peer := memberOf(i, s.r.hosts[i].run), memberOf(1-i, s.r.hosts[1-i].run)
	var ev Event
	switch args[0].Key {
	case "acked":
		ev = Acked(n["session"], Epoch(n["epoch"]))
	case "completed":
		ev = Completed(n["session"], Epoch(n["epoch"]))
	case "observed":
		ev = Observed(n["request"], record(n, w))
	case "status":
		ev = StatusReceived(Status{
			From: peer, To: me, Seq: n["seq"], Heard: n["heard"], Session: n["session"], Record: record(n, w),
		})
		if to, ok := w["to"]; ok {
			ev.Status.To = member(to)
		}
		for p, name := range phaseNames {
			if name == w["phase"] {
				ev.Status.Phase = Phase(p)
			}
		}
	case "force":
		ev = Force()
	case "fence":
		ev = Fence(w["force"] == "yes")
	case "switchover":
		ev = Switchover()
	case "repaired":
		ev = Repaired()
	case "tick":
		ev = Tick(n["n"])
	default:
		return fmt.Errorf("%s: not possible now, or unknown", args[0].Key)
	}
	s.r.step(i, ev)
	return nil
}

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Setting is one way to set emulated nodes up, to be compared by soak runs.
type Setting struct {
	Name      string    `json:"name"`
	Kernel    string    `json:"kernel"`
	Emulation Emulation `json:"emulation"`
}

// SoakConfig is a series of runs that find out under which settings an emulated node survives hard work with nested guests.
type SoakConfig struct {
	Dir      string        // of the runs' labs; console logs of dead nodes stay there
	Output   string        // JSON lines of SoakRun, appended
	Binary   string        // see Config
	NodeArgs []string      // see Config
	Settings []Setting     // run in turn, so that each has its share of the machine's good and bad times
	Runs     int           // per setting
	Duration time.Duration // of the work in each run
	Parallel int           // nodes at a time
	Nice     int

	// Files are copied into the node first: source by target.
	Files map[string]string
	// Work is the command that works the node; "{seconds}" in its arguments is replaced by Duration. It has to end with success
	// by itself.
	Work   Command
	Logger *slog.Logger
}

// Outcome is how a soak run ended.
type Outcome string

// The outcomes of soak runs.
const (
	Survived   Outcome = "survived"
	Died       Outcome = "died"        // the node died by itself
	WorkFailed Outcome = "work failed" // the node is well, the work in it is not: says nothing about the node
)

// SoakRun is the result of one run.
type SoakRun struct {
	Setting Setting   `json:"setting"`
	Run     int       `json:"run"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"` // of work until the end
	Boot    float64   `json:"boot_seconds"`
	Outcome Outcome   `json:"outcome"`
	Cause   Cause     `json:"cause,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Said    string    `json:"said"` // the last line that the work printed
}

// SoakCount sums up one setting.
type SoakCount struct {
	Setting    string
	Runs       int
	Died       int
	WorkFailed int
	Worked     time.Duration
}

func (c SoakCount) String() string {
	return fmt.Sprintf("%s: %d runs, %d died, %d with failed work, %v of work", c.Setting, c.Runs, c.Died, c.WorkFailed, c.Worked.Round(time.Second))
}

// Soak makes the runs and returns one count per setting, in the order given. Deaths are results, not errors.
func Soak(ctx context.Context, cfg SoakConfig) ([]SoakCount, error) {
	if len(cfg.Settings) == 0 || cfg.Runs < 1 || cfg.Parallel < 1 || cfg.Duration <= 0 || len(cfg.Work.Args) == 0 {
		return nil, errors.New("lab: a soak needs settings, runs, nodes in parallel, a duration and work")
	}
	out, err := os.OpenFile(cfg.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: soak results: %w", err)
	}
	defer out.Close()
	s := &soak{cfg: cfg, out: out, counts: make([]SoakCount, len(cfg.Settings))}
	for i, setting := range cfg.Settings {
		s.counts[i].Setting = setting.Name
	}
	slots := make(chan int, cfg.Parallel)
	for slot := range cfg.Parallel {
		slots <- slot
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cfg.Parallel)
	for run := range cfg.Runs {
		for i := range cfg.Settings {
			g.Go(func() error {
				slot := <-slots
				defer func() { slots <- slot }()
				return s.one(ctx, slot, i, run+1)
			})
		}
	}
	err = g.Wait()
	return s.counts, err
}

type soak struct {
	cfg SoakConfig

	mu     sync.Mutex
	out    *os.File    // guarded by mu
	counts []SoakCount // guarded by mu
}

// one makes one run and records it. Errors are about the lab, not about the node.
func (s *soak) one(ctx context.Context, slot, setting, run int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := SoakRun{Setting: s.cfg.Settings[setting], Run: run, Began: time.Now()}
	dir := filepath.Join(s.cfg.Dir, fmt.Sprintf("slot-%d", slot))
	if err := s.work(ctx, dir, &r); err != nil {
		return err
	}
	if r.Outcome == Died {
		kept := filepath.Join(s.cfg.Dir, fmt.Sprintf("died-%s-%d-%d", r.Setting.Name, run, r.Began.Unix()))
		if err := os.Rename(filepath.Join(dir, "nodes"), kept); err != nil {
			return fmt.Errorf("lab: keep a dead node's logs: %w", err)
		}
	}
	return s.record(setting, r)
}

func (s *soak) work(ctx context.Context, dir string, r *SoakRun) (err error) {
	l, err := Up(ctx, Config{
		Dir: dir, Backend: Emulated, Binary: s.cfg.Binary, NodeArgs: s.cfg.NodeArgs, Kernel: r.Setting.Kernel,
		Nodes: []string{HostA}, Emulation: r.Setting.Emulation, Nice: s.cfg.Nice, Logger: s.cfg.Logger,
	})
	r.Boot = time.Since(r.Began).Seconds()
	var died *NodeDied
	if errors.As(err, &died) {
		r.dead(died)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	guarded, stop, err := l.Guard(ctx)
	if err != nil {
		return err
	}
	defer stop()
	said := &lastLine{}
	began := time.Now()
	workErr := s.workIn(guarded, l, said)
	r.Seconds, r.Said = time.Since(began).Seconds(), said.String()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case workErr == nil:
		r.Outcome = Survived
	case errors.As(context.Cause(guarded), &died), errors.As(l.Explain(workErr), &died):
		r.dead(died)
	default:
		r.Outcome, r.Detail = WorkFailed, workErr.Error()
	}
	return nil
}

func (s *soak) workIn(ctx context.Context, l *Lab, said *lastLine) error {
	for _, target := range sortedKeys(s.cfg.Files) {
		if err := l.Put(ctx, HostA, s.cfg.Files[target], target); err != nil {
			return err
		}
	}
	c := s.cfg.Work
	c.Args = make([]string, len(s.cfg.Work.Args))
	for i, arg := range s.cfg.Work.Args {
		c.Args[i] = strings.ReplaceAll(arg, "{seconds}", fmt.Sprint(int(s.cfg.Duration.Seconds())))
	}
	return l.Exec(ctx, HostA, c, nil, said, said)
}

func (r *SoakRun) dead(died *NodeDied) {
	r.Outcome, r.Cause, r.Detail = Died, died.Cause, died.Detail
}

func (s *soak) record(setting int, r SoakRun) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("lab: encode a soak result: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.counts[setting]
	c.Runs++
	c.Worked += time.Duration(r.Seconds * float64(time.Second))
	switch r.Outcome {
	case Died:
		c.Died++
	case WorkFailed:
		c.WorkFailed++
	case Survived:
	}
	if _, err := s.out.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("lab: write a soak result: %w", err)
	}
	return nil
}

// lastLine keeps the last whole line of what is written to it.
type lastLine struct {
	mu   sync.Mutex
	line string // guarded by mu
	rest []byte // guarded by mu
}

func (l *lastLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	if end := bytes.LastIndexByte(l.rest, '\n'); end >= 0 {
		lines := bytes.Split(bytes.TrimRight(l.rest[:end], "\n"), []byte("\n"))
		l.line = clean(string(lines[len(lines)-1]))
		l.rest = append(l.rest[:0], l.rest[end+1:]...)
	}
	const bound = 4096 // of a line without an end
	if len(l.rest) > bound {
		l.rest = l.rest[len(l.rest)-bound:]
	}
	return len(p), nil
}

func (l *lastLine) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line
}

// SoakSettings are the settings that are worth comparing: the default and, one at a time, what could matter. The kernel that has
// everything built in is allIn; modular, with its modules in moduleDir, is left out when empty.
func SoakSettings(allIn, modular, moduleDir string) []Setting {
	with := func(name string, change func(*Emulation)) Setting {
		e := DefaultEmulation()
		e.Args = append([]string(nil), e.Args...)
		change(&e)
		return Setting{Name: name, Kernel: allIn, Emulation: e}
	}
	settings := []Setting{
		with("default", func(*Emulation) {}),
		with("plain", func(e *Emulation) { e.Args = []string{} }),
		with("nested0", func(e *Emulation) { e.Args = []string{"kvm_amd.vgif=0", "kvm_amd.vls=0", "kvm_amd.nested=0"} }),
		with("npt0", func(e *Emulation) { e.Args = append(e.Args, "kvm_amd.npt=0") }),
		with("two-cpus", func(e *Emulation) { e.CPUs = 2 }),
		with("two-cpus-plain", func(e *Emulation) { e.CPUs, e.Args = 2, []string{} }),
		with("two-cpus-one-thread", func(e *Emulation) { e.CPUs, e.Thread = 2, "single" }),
		with("xsave", func(e *Emulation) { e.CPU = "max,-aes,-pclmulqdq" }),
		with("epyc", func(e *Emulation) { e.CPU = "EPYC,-xsave,-aes,-pclmulqdq" }),
	}
	if modular != "" {
		m := with("modular", func(e *Emulation) { e.ModuleDir = moduleDir })
		m.Kernel = modular
		plain := with("modular-plain", func(e *Emulation) { e.ModuleDir, e.Args = moduleDir, []string{} })
		plain.Kernel = modular
		settings = append(settings, m, plain)
	}
	return settings
}

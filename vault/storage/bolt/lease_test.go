package bolt

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// A leaseChild is what a re-executed test binary is told to do.
type leaseChild struct {
	Dir        string
	Goroutines int           // that call without pause until stdin ends
	Hold       bool          // one call that lasts until stdin ends
	Work       bool          // calls do a little work; those of the first goroutine last as long as a sync
	Think      time.Duration // between the calls of a goroutine
	Patience   time.Duration
	Timeout    time.Duration
	Raw        bool // control: no lease at all
}

// leaseReport is what the child prints at the end.
type leaseReport struct {
	Calls, Errors, Overlaps    int
	P50, P95, P99, Max         time.Duration // wait for the turn
	LastError                  string
	Unavailable, Opens, Closes int
}

const leaseChildEnv = "SOLEKEY_TEST_LEASE_CHILD"

// TestLeaseChild is the body of the child processes.
func TestLeaseChild(t *testing.T) {
	var c leaseChild
	if s := os.Getenv(leaseChildEnv); s == "" {
		t.Skip("run by the other lease tests")
	} else if err := json.Unmarshal([]byte(s), &c); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	r, err := c.run(stop)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(r)
	fmt.Printf("report %s\n", b)
}

// run makes calls until stop is closed.
func (c leaseChild) run(stop chan struct{}) (leaseReport, error) {
	w := &witness{dir: c.Dir}
	l, err := newLease(c.Dir, leaseOptions{TurnTimeout: c.Timeout, Patience: c.Patience}, w.open, w.close)
	if err != nil {
		return leaseReport{}, err
	}
	enter, leave := l.enter, l.leave
	if c.Raw {
		enter = func(context.Context) error { return w.open(true) }
		leave = func() { w.close() }
	}
	n := max(c.Goroutines, 1)
	callers := make([]caller, n)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { callers[i].run(c, i == 0, enter, leave, stop) })
	}
	wg.Wait()
	l.shutdown()
	return sum(callers, w), nil
}

var closedTime = func() chan time.Time { c := make(chan time.Time); close(c); return c }()

// caller is one goroutine of a child.
type caller struct {
	waits                      []time.Duration
	errs, unavailable          int
	last                       error
	leads, announced, finished bool
}

func (c *caller) run(child leaseChild, leads bool, enter func(context.Context) error, leave func(), stop chan struct{}) {
	c.leads = leads
	for !c.finished {
		start := time.Now()
		if err := enter(context.Background()); err != nil {
			c.fail(err)
		} else {
			c.waits = append(c.waits, time.Since(start))
			c.inside(child, stop)
			leave()
		}
		c.think(child.Think, stop)
	}
}

// think pauses between two calls; without a pause the goroutine spins.
func (c *caller) think(d time.Duration, stop chan struct{}) {
	var pause <-chan time.Time
	if d > 0 {
		pause = time.After(d)
	} else {
		pause = closedTime
	}
	select {
	case <-stop:
		c.finished = true
	case <-pause:
	}
}

func (c *caller) fail(err error) {
	c.errs++
	c.last = err
	if errors.Is(err, storage.ErrUnavailable) {
		c.unavailable++
	}
	fmt.Println("failed")
}

// inside is the work of one call.
func (c *caller) inside(child leaseChild, stop chan struct{}) {
	if !c.announced {
		c.announced = true
		fmt.Println("inside")
	}
	if child.Hold {
		<-stop
	}
	if child.Work && c.leads {
		time.Sleep(200 * time.Microsecond)
	} else if child.Work {
		var b [4096]byte
		rand.NewChaCha8([32]byte{}).Read(b[:])
	}
}

func sum(callers []caller, w *witness) leaseReport {
	r := leaseReport{Overlaps: int(w.overlaps.Load()), Opens: int(w.opens.Load()), Closes: int(w.closes.Load())}
	var waits []time.Duration
	for _, c := range callers {
		waits = append(waits, c.waits...)
		r.Errors += c.errs
		r.Unavailable += c.unavailable
		if c.last != nil {
			r.LastError = c.last.Error()
		}
	}
	r.Calls = len(waits)
	r.P50, r.P95, r.P99, r.Max = quantile(waits, .5), quantile(waits, .95), quantile(waits, .99), quantile(waits, 1)
	return r
}

func quantile(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	slices.Sort(ds)
	return ds[int(q*float64(len(ds)-1))]
}

// A witness is what open and close do in these tests: it locks a file of its
// own without waiting, which fails exactly if another holder is inside.
type witness struct {
	dir                     string
	file                    *os.File
	opens, closes, overlaps atomic.Int64
	foreign                 atomic.Int64
	err                     error
}

func (w *witness) open(foreign bool) error {
	if w.err != nil {
		return w.err
	}
	f, err := openLock(filepath.Join(w.dir, "witness"))
	if err != nil {
		return err
	}
	got, err := flock(f, false, false)
	if err != nil || !got {
		w.overlaps.Add(1)
		f.Close()
		return errors.Join(errors.New("two holders"), err)
	}
	if foreign {
		w.foreign.Add(1)
	}
	w.file = f
	w.opens.Add(1)
	return nil
}

func (w *witness) close() error {
	w.closes.Add(1)
	letGo(w.file)
	return nil
}

// process is a running child.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

// startLeaseChild starts c; the child is killed when the test ends.
func startLeaseChild(t *testing.T, c leaseChild) *process {
	t.Helper()
	conf, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeaseChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), leaseChildEnv+"="+string(conf))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: cmd, in: in, lines: make(chan string, 1<<16)}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		for range p.lines {
		}
		cmd.Wait()
	})
	return p
}

// expect reads lines up to one that begins with prefix.
func (p *process) expect(prefix string) string {
	p.t.Helper()
	limit := time.After(patient)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("child ended before %q", prefix)
			}
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest
			}
		case <-limit:
			p.t.Fatalf("no %q from the child in %v", prefix, patient)
		}
	}
}

// finish ends the child's work and returns its report.
func (p *process) finish() leaseReport {
	p.t.Helper()
	p.in.Close()
	var r leaseReport
	if err := json.Unmarshal([]byte(p.expect("report ")), &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *process) pid() string { return strconv.Itoa(p.cmd.Process.Pid) }

// testLease returns a lease of this process, shut down when the test ends.
func testLease(t testing.TB, dir string, o leaseOptions) (*lease, *witness) {
	t.Helper()
	w := &witness{dir: dir}
	l, err := newLease(dir, o, w.open, w.close)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.shutdown()
		if o, c, two := w.opens.Load(), w.closes.Load(), w.overlaps.Load(); o != c && !l.dead || two > 0 {
			t.Errorf("opens = %d, closes = %d, overlaps = %d", o, c, two)
		}
	})
	return l, w
}

// mustEnter enters within the turn's time limit.
func mustEnter(t testing.TB, l *lease) {
	t.Helper()
	if err := l.enter(t.Context()); err != nil {
		t.Fatalf("enter = %v", err)
	}
}

// soak reports whether durations are asserted and long tests run long.
func soak() bool { return os.Getenv("SOLEKEY_SOAK") == "1" }

// patient is a limit that only a hang reaches.
const patient = 30 * time.Second

// eventually polls a condition that time alone brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patient); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patient, what)
		}
	}
}

// yields reports that the turn is held but lets no further call in.
func (l *lease) yields() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held && l.state.Load()&stateOpen == 0
}

func (l *lease) isFree() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turn == nil && !l.acquiring
}

func TestTurnIsSharedByCallsAndEndsWhenIdle(t *testing.T) {
	l, w := testLease(t, t.TempDir(), leaseOptions{})
	for range 1000 {
		mustEnter(t, l)
		l.leave()
	}
	eventually(t, "an idle turn ends", l.isFree)
	if o, c := w.opens.Load(), w.closes.Load(); o != c || o > 100 {
		t.Errorf("1000 calls: %d opens, %d closes", o, c)
	}
}

func TestLoneHolderLingers(t *testing.T) {
	l, w := testLease(t, t.TempDir(), leaseOptions{})
	mustEnter(t, l)
	l.leave()
	eventually(t, "first turn ends", l.isFree) // it met the record of nobody, so it is short
	l.mu.Lock()
	l.sharedAt = time.Time{}
	l.mu.Unlock()
	mustEnter(t, l)
	l.leave()
	start := time.Now()
	eventually(t, "lingering turn ends", l.isFree)
	if d := time.Since(start); soak() && d < turnLinger-20*time.Millisecond {
		t.Errorf("lone idle turn lasted %v, want %v", d, turnLinger)
	}
	if n := w.foreign.Load(); n != 1 {
		t.Errorf("foreign turns = %d, want 1", n)
	}
}

func TestForeignTurnIsReportedUntilOpenSucceeds(t *testing.T) {
	dir := t.TempDir()
	a, wa := testLease(t, dir, leaseOptions{})
	b, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	a.leave()
	eventually(t, "a is free", a.isFree)
	mustEnter(t, b)
	b.leave()
	wa.err = errors.New("disk on fire")
	for range 2 {
		if err := a.enter(t.Context()); !errors.Is(err, wa.err) {
			t.Fatalf("enter = %v, want %v", err, wa.err)
		}
	}
	wa.err = nil
	mustEnter(t, a)
	a.leave()
	if n := wa.foreign.Load(); n != 2 {
		t.Errorf("foreign turns reported = %d, want 2: the first, and the one after b", n)
	}
}

func TestEnterAfterShutdownIsClosed(t *testing.T) {
	dir := t.TempDir()
	l, w := testLease(t, dir, leaseOptions{})
	mustEnter(t, l)
	down := make(chan struct{})
	go func() { l.shutdown(); close(down) }()
	<-l.done
	if err := l.enter(t.Context()); !errors.Is(err, storage.ErrClosed) {
		t.Errorf("enter = %v, want %v", err, storage.ErrClosed)
	}
	select {
	case <-down:
		t.Fatal("shutdown returned while a call runs")
	default:
	}
	l.leave()
	<-down
	if w.closes.Load() != 1 {
		t.Errorf("closes = %d, want 1", w.closes.Load())
	}
	l.shutdown()
	other, _ := testLease(t, dir, leaseOptions{TurnTimeout: 100 * time.Millisecond})
	mustEnter(t, other)
	other.leave()
}

func TestWaitersOfAFrozenTurnAreClosedByShutdown(t *testing.T) {
	dir := t.TempDir()
	a, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	defer a.leave()
	b, _ := testLease(t, dir, leaseOptions{})
	got := make(chan error)
	go func() { got <- b.enter(context.Background()) }()
	eventually(t, "b waits", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.round.waiting == 1 })
	b.shutdown()
	if err := <-got; !errors.Is(err, storage.ErrClosed) {
		t.Errorf("enter = %v, want %v", err, storage.ErrClosed)
	}
}

func TestCancelledCallGivesUpItsPlace(t *testing.T) {
	dir := t.TempDir()
	a, _ := testLease(t, dir, leaseOptions{})
	b, wb := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := b.enter(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("enter = %v, want %v", err, context.DeadlineExceeded)
	}
	a.leave()
	eventually(t, "b gives the turn back unopened", b.isFree)
	if n := wb.opens.Load(); n != 0 {
		t.Errorf("opens for nobody = %d", n)
	}
	mustEnter(t, a)
	a.leave()
}

func TestAbandonUnlocksWithoutClose(t *testing.T) {
	dir := t.TempDir()
	a, wa := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	mustEnter(t, a)
	if err := a.mark(flagPanic); err != nil {
		t.Fatal(err)
	}
	a.abandon()
	a.leave()
	a.leave()
	if n := wa.closes.Load(); n != 0 {
		t.Errorf("closes = %d, want 0", n)
	}
	if err := a.enter(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("enter = %v, want %v", err, storage.ErrUnavailable)
	}
	letGo(wa.file) // the engine unlocks its own file
	b, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, b)
	if got := b.flags(); got != flagPanic {
		t.Errorf("flags = %d, want %d", got, flagPanic)
	}
	b.leave()
}

func TestFlagsOutliveHoldersUntilCleared(t *testing.T) {
	dir := t.TempDir()
	a, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	if err := errors.Join(a.mark(flagIO), a.mark(flagPanic)); err != nil {
		t.Fatal(err)
	}
	a.leave()
	a.shutdown()
	b, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, b)
	if got := b.flags(); got != flagIO|flagPanic {
		t.Errorf("flags = %d", got)
	}
	b.leave()
	c, _ := testLease(t, dir, leaseOptions{})
	if err := c.clear(); err != nil { // b may still hold the turn
		t.Fatal(err)
	}
	mustEnter(t, b)
	defer b.leave()
	if got := b.flags(); got != 0 {
		t.Errorf("flags after clear = %d", got)
	}
}

// TestClearIsNotUndoneByATurnThatBegins clears a flag again and again while
// another goroutine takes turns, and sets it again.
func TestClearIsNotUndoneByATurnThatBegins(t *testing.T) {
	dir := t.TempDir()
	l, w := testLease(t, dir, leaseOptions{TurnTimeout: patient})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w.opens.Load() < 60 {
			if err := l.enter(context.Background()); err != nil {
				t.Errorf("enter = %v", err)
				return
			}
			l.mu.Lock()
			l.sharedAt = time.Now() // so that the turn is short
			l.mu.Unlock()
			l.leave()
			time.Sleep(time.Millisecond) // lets the turn grow old enough to end
		}
	}()
	rounds := 0
	for ended := false; !ended; rounds++ {
		select {
		case <-done:
			ended = true
		default:
		}
		for _, step := range []struct {
			do   func() error
			want uint32
		}{{func() error { return l.mark(flagIO) }, flagIO}, {l.clear, 0}} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			rec, err := readHolder(l.path)
			if err != nil || rec.flags != step.want {
				t.Fatalf("flags in the record = %d, %v, want %d", rec.flags, err, step.want)
			}
		}
	}
	t.Logf("%d rounds over %d turns", rounds, w.opens.Load())
}

// TestNeverTwoInside is conformance test 18, the engine of the cancels being
// a context that ends at a random moment.
func TestNeverTwoInside(t *testing.T) {
	dir := t.TempDir()
	var inside atomic.Int64 // the lease that is inside; 0: none
	var calls, cancels atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for id := range int64(5) {
		l, _ := testLease(t, dir, leaseOptions{Patience: 20 * time.Millisecond})
		var mine atomic.Int64
		for range 4 {
			wg.Go(func() {
				for time.Now().Before(end) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(int(30*time.Millisecond))))
					if err := l.enter(ctx); err != nil {
						cancels.Add(1)
						cancel()
						continue
					}
					if mine.Add(1) == 1 && !inside.CompareAndSwap(0, id+1) && inside.Load() != id+1 {
						t.Errorf("lease %d enters while lease %d is inside", id+1, inside.Load())
					}
					calls.Add(1)
					time.Sleep(time.Duration(rand.IntN(int(200 * time.Microsecond))))
					if mine.Add(-1) == 0 {
						inside.CompareAndSwap(id+1, 0)
					}
					l.leave()
					cancel()
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d calls, %d cancelled", calls.Load(), cancels.Load())
	if calls.Load() == 0 || soak() && (calls.Load() < 100 || cancels.Load() < 100) {
		t.Errorf("calls = %d, cancels = %d: the test does not bite", calls.Load(), cancels.Load())
	}
}

func TestSymlinkedLockIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), filepath.Join(dir, lockName)); err != nil {
		t.Skip(err)
	}
	l, _ := testLease(t, dir, leaseOptions{})
	if err := l.enter(t.Context()); err == nil {
		t.Error("enter through a symbolic link = nil")
	}
}

func TestHeldEnterAllocatesNothing(t *testing.T) {
	l, _ := testLease(t, t.TempDir(), leaseOptions{})
	mustEnter(t, l)
	defer l.leave()
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _ = l.enter(ctx); l.leave() }); n != 0 {
		t.Errorf("allocations = %v, want 0", n)
	}
}

func BenchmarkEnterLeaveHeld(b *testing.B) {
	l, _ := testLease(b, b.TempDir(), leaseOptions{})
	mustEnter(b, l)
	defer l.leave()
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_ = l.enter(ctx)
		l.leave()
	}
}

func BenchmarkColdTurn(b *testing.B) {
	dir := b.TempDir()
	b.ReportAllocs()
	for b.Loop() {
		w := &witness{dir: dir}
		l, err := newLease(dir, leaseOptions{}, w.open, w.close)
		if err != nil {
			b.Fatal(err)
		}
		mustEnter(b, l)
		l.leave()
		l.shutdown()
	}
}

//go:build unix

package bolt

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// TestWaitIsShort is the lease's part of conformance test 13: what a command
// waits that comes, makes one call and goes, beside busy processes. A machine
// with other work makes waits longer, never shorter, so the best of three
// attempts counts.
func TestWaitIsShort(t *testing.T) {
	timed(t)
	for _, c := range []struct{ processes, goroutines int }{{1, 1}, {1, 16}, {1, 64}, {4, 1}, {4, 16}} {
		best := time.Hour
		for attempt := 0; attempt < 3 && best > 50*time.Millisecond; attempt++ {
			best = min(best, commandWait(t, c.processes, c.goroutines))
		}
		if best > 50*time.Millisecond {
			t.Errorf("%d processes x %d: p95 of a command's wait = %v, want < 50 ms", c.processes, c.goroutines, best)
		}
	}
}

// commandWait returns the 95th percentile of the wait of 40 commands.
func commandWait(t *testing.T, processes, goroutines int) time.Duration {
	t.Helper()
	dir := t.TempDir()
	ps := startBusy(t, dir, processes, goroutines)
	pace := time.NewTicker(11 * time.Millisecond)
	defer pace.Stop()
	var waits []time.Duration
	for range 40 {
		<-pace.C
		l, _ := testLease(t, dir, leaseOptions{TurnTimeout: 20 * time.Second})
		start := time.Now()
		mustEnter(t, l)
		waits = append(waits, time.Since(start))
		l.leave()
		l.shutdown()
	}
	t.Logf("%d processes x %d: commands wait p50 %v, p95 %v, max %v", processes, goroutines, quantile(waits, .5), quantile(waits, .95), quantile(waits, 1))
	finishBusy(t, ps)
	return quantile(waits, .95)
}

// TestPollingWaitIsLong is the control: a command that polls for the turn, as
// a caller of bbolt does, waits longer.
func TestPollingWaitIsLong(t *testing.T) {
	timed(t)
	dir := t.TempDir()
	ps := startBusy(t, dir, 4, 1)
	f, err := openLock(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var waits []time.Duration
	for range 5 {
		start := time.Now()
		retry := time.NewTicker(50 * time.Millisecond)
		for got := false; !got && time.Since(start) < 500*time.Millisecond; {
			if got, err = flock(f, false, false); err != nil {
				t.Fatal(err)
			} else if !got {
				<-retry.C
			}
		}
		retry.Stop()
		waits = append(waits, time.Since(start))
		funlock(f)
	}
	if p95 := quantile(waits, .95); p95 < 50*time.Millisecond {
		t.Errorf("p95 of a polling wait = %v: TestWaitIsShort does not bite", p95)
	}
	finishBusy(t, ps)
}

// TestNobodyStarves lets five processes call without pause for a second.
func TestNobodyStarves(t *testing.T) {
	ps := startBusy(t, t.TempDir(), 5, 1)
	<-time.After(time.Second)
	finishBusy(t, ps)
}

// timed marks a test whose assertion is a duration: on a busy machine it says
// more about the machine. SOLEKEY_SOAK=1 runs it.
func timed(t *testing.T) {
	t.Helper()
	if !soak() {
		t.Skip("durations are asserted with SOLEKEY_SOAK=1 only")
	}
}

func startBusy(t *testing.T, dir string, processes, goroutines int) []*process {
	t.Helper()
	var ps []*process
	for range processes {
		ps = append(ps, startLeaseChild(t, leaseChild{Dir: dir, Goroutines: goroutines, Work: true, Timeout: patient}))
	}
	for _, p := range ps {
		p.expect("inside")
	}
	return ps
}

// finishBusy ends the processes and checks that none was refused, met another
// inside, or got far fewer turns than another.
func finishBusy(t *testing.T, ps []*process) {
	t.Helper()
	for _, p := range ps {
		p.in.Close()
	}
	least, most := 1<<30, 0
	for _, p := range ps {
		r := p.finish()
		t.Logf("%d calls in %d turns, wait p95 %v, p99 %v, max %v", r.Calls, r.Opens, r.P95, r.P99, r.Max)
		if r.Overlaps > 0 || r.Errors > 0 || r.Opens != r.Closes {
			t.Errorf("report = %+v", r)
		}
		least, most = min(least, r.Opens), max(most, r.Opens)
	}
	if soak() && most > 3*least+3 {
		t.Errorf("turns of the processes = %d to %d: want less than 3 times apart", least, most)
	}
}

// TestRawCallersOverlap is the control of the witness: callers without the
// lease are found to be inside together.
func TestRawCallersOverlap(t *testing.T) {
	dir := t.TempDir()
	a := startLeaseChild(t, leaseChild{Dir: dir, Hold: true, Raw: true})
	a.expect("inside")
	b := startLeaseChild(t, leaseChild{Dir: dir, Raw: true, Think: time.Millisecond})
	b.expect("failed")
	if r := b.finish(); r.Overlaps == 0 {
		t.Error("two holders are not noticed")
	}
}

func TestKilledHolderFreesTheTurn(t *testing.T) {
	dir := t.TempDir()
	l, w := testLease(t, dir, leaseOptions{})
	var worst time.Duration
	for range 5 {
		p := startLeaseChild(t, leaseChild{Dir: dir, Hold: true})
		p.expect("inside")
		got := make(chan error)
		go func() { got <- l.enter(t.Context()) }()
		eventually(t, "the call waits", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.round.waiting == 1 })
		start := time.Now()
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(start))
		l.leave()
		eventually(t, "the turn ends", l.isFree)
	}
	if n := w.foreign.Load(); n != 5 {
		t.Errorf("foreign turns = %d, want 5", n)
	}
	t.Logf("turn at most %v after the kill", worst)
	if soak() && worst > time.Second {
		t.Errorf("turn %v after the kill, want it at once", worst)
	}
}

func signal(t *testing.T, p *process, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// freezeHead returns a process that is frozen as the head of the queue.
func freezeHead(t *testing.T, dir string) *process {
	t.Helper()
	l, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, l)
	p := startLeaseChild(t, leaseChild{Dir: dir, Hold: true, Timeout: time.Minute})
	eventually(t, "the child heads the queue", func() bool { return l.yields() })
	signal(t, p, syscall.SIGSTOP)
	eventually(t, "the child is stopped", func() bool { return state(t, p) == "T" })
	l.leave()
	l.shutdown()
	return p
}

// state returns the state letter of a process.
func state(t *testing.T, p *process) string {
	b, err := os.ReadFile("/proc/" + p.pid() + "/stat")
	if err != nil {
		t.Skip("no /proc: ", err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// TestFrozenHeadOfQueue is conformance test 15, first half.
func TestFrozenHeadOfQueue(t *testing.T) {
	dir := t.TempDir()
	head := freezeHead(t, dir)

	control, _ := testLease(t, dir, leaseOptions{Patience: time.Hour, TurnTimeout: 700 * time.Millisecond})
	if err := control.enter(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("control without patience: enter = %v, want %v", err, storage.ErrUnavailable)
	}

	a, wa := testLease(t, dir, leaseOptions{})
	b, wb := testLease(t, dir, leaseOptions{})
	start := time.Now()
	mustEnter(t, a)
	if d := time.Since(start); soak() && (d < turnPatience/2 || d > 3*turnPatience) {
		t.Errorf("wait behind a frozen head = %v, want about %v", d, turnPatience)
	}
	a.leave()
	mustEnter(t, b)
	b.leave()
	var waits []time.Duration // both have shown their patience: they wait no longer
	for range 20 {
		for _, l := range []*lease{a, b} {
			start := time.Now()
			mustEnter(t, l)
			waits = append(waits, time.Since(start))
			l.leave()
		}
	}
	p50 := quantile(waits, .5)
	t.Logf("behind a frozen head: %d and %d turns, wait p50 %v, max %v", wa.opens.Load(), wb.opens.Load(), p50, quantile(waits, 1))
	if soak() && p50 > 100*time.Millisecond {
		t.Errorf("median wait of patient processes = %v, want < 100 ms", p50)
	}

	signal(t, head, syscall.SIGCONT)
	head.expect("inside")
	if r := head.finish(); r.Overlaps > 0 {
		t.Errorf("report of the head = %+v", r)
	}
	eventually(t, "the old waits end", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.kept == nil
	})
	mustEnter(t, a)
	a.leave()
}

// TestFrozenHolder is conformance test 15, second half.
func TestFrozenHolder(t *testing.T) {
	dir := t.TempDir()
	p := startLeaseChild(t, leaseChild{Dir: dir, Hold: true})
	p.expect("inside")
	signal(t, p, syscall.SIGSTOP)
	l, _ := testLease(t, dir, leaseOptions{})
	start := time.Now()
	err := l.enter(t.Context())
	if d := time.Since(start); !errors.Is(err, storage.ErrUnavailable) || soak() && (d < 1900*time.Millisecond || d > 3*time.Second) {
		t.Errorf("enter = %v after %v, want %v after 2 s", err, d, storage.ErrUnavailable)
	}
	if err != nil && !strings.Contains(err.Error(), "process "+p.pid()+" since 20") {
		t.Errorf("enter = %v: names neither pid %s nor since when", err, p.pid())
	}
	signal(t, p, syscall.SIGCONT)
	p.in.Close()
	start = time.Now()
	mustEnter(t, l)
	t.Logf("turn %v after SIGCONT", time.Since(start))
	l.leave()
}

// TestDeletedLockNeverMakesTwoHolders is the lease's part of conformance
// test 17.
func TestDeletedLockNeverMakesTwoHolders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lockName)
	a, _ := testLease(t, dir, leaseOptions{})
	mustEnter(t, a)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f, err := openLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := flock(f, false, false); !got {
		t.Errorf("control: the new lock file is locked (%v), so the test does not bite", err)
	}
	letGo(f)

	b, wb := testLease(t, dir, leaseOptions{TurnTimeout: 200 * time.Millisecond})
	if err := b.enter(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
		t.Errorf("enter beside a holder = %v, want %v", err, storage.ErrUnavailable)
	}
	eventually(t, "the holder yields", func() bool { return a.yields() })
	a.leave()
	mustEnter(t, b)
	b.leave()
	mustEnter(t, a)
	a.leave()
	if n := wb.overlaps.Load(); n > 0 {
		t.Errorf("overlaps = %d", n)
	}
}

// TestTurnOfADeletedLockIsSeenWaiting: who gets the lock of a file that has
// gone must not wait out of sight of who has the turn by the file there is now.
func TestTurnOfADeletedLockIsSeenWaiting(t *testing.T) {
	dir := t.TempDir()
	path, queue := filepath.Join(dir, lockName), filepath.Join(dir, queueName)
	old, err := openLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := flock(old, false, false); !got {
		t.Fatal(err)
	}
	late, _ := testLease(t, dir, leaseOptions{TurnTimeout: patient})
	entered := make(chan error, 1)
	go func() { entered <- late.enter(t.Context()) }()
	eventually(t, "the late one is in the queue", func() bool {
		q, err := openLock(queue)
		if err != nil {
			return false
		}
		defer letGo(q)
		got, err := flock(q, false, false)
		return err == nil && !got
	})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	holder, _ := testLease(t, dir, leaseOptions{TurnTimeout: patient, Patience: time.Millisecond})
	mustEnter(t, holder)
	letGo(old) // the late one gets the lock of a file that nobody else can find
	eventually(t, "the holder yields to the late one", holder.yields)
	holder.leave()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	late.leave()
}

// TestReplacedLocksUnderLoad deletes and replaces both lock files while four
// processes work.
func TestReplacedLocksUnderLoad(t *testing.T) {
	dir := t.TempDir()
	var ps []*process
	for range 4 {
		ps = append(ps, startLeaseChild(t, leaseChild{Dir: dir, Goroutines: 2, Work: true, Timeout: patient}))
	}
	for _, p := range ps {
		p.expect("inside")
	}
	ticker := time.NewTicker(7 * time.Millisecond)
	defer ticker.Stop()
	for i := range 150 {
		<-ticker.C
		name := filepath.Join(dir, []string{lockName, queueName, lockName}[i%3])
		if i%2 == 0 {
			os.Remove(name)
		} else if os.WriteFile(name+".other", nil, 0o600) == nil {
			os.Rename(name+".other", name)
		}
	}
	for _, p := range ps {
		r := p.finish()
		t.Logf("%+v", r)
		if r.Overlaps > 0 || r.Errors > 0 || r.Calls == 0 || soak() && r.Calls < 50 {
			t.Errorf("report = %+v", r)
		}
	}
}

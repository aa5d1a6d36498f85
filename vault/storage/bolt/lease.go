package bolt

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// The lease lends the data directory to one process at a time.
//
// A process owns the directory while it has the file lock locked: that is its
// turn. It asks for the turn only while it has the file lock.queue locked, so
// one process at most waits for the turn, the holder learns by trying the
// queue that somebody waits, and turns go round. Kernel locks end with their
// process. Rules:
//
//   - The turn is unlocked only after close has returned.
//   - A turn lasts turnMinimum at least, so one call's steps share it.
//   - Descriptors belong to one acquisition or one turn, never to the lease:
//     a free process has no open file, no timer and no goroutine.
//   - While the turn is held the directory itself is locked too, where the
//     system can. Whoever deletes or replaces the file lock thereby makes a
//     second turn possible, but its owner waits until the first has ended.
//   - lease.mu is never held across open, close, Idle or a wait.
const (
	tickEvery    = 5 * time.Millisecond   // how often a holder looks into the queue
	turnMinimum  = 5 * time.Millisecond   // a younger turn is not given up
	turnLinger   = 250 * time.Millisecond // how long an idle turn lasts when nobody else is there
	turnShared   = time.Second            // so long after another process was met, an idle turn ends at turnMinimum
	turnPatience = 500 * time.Millisecond // in the queue this long, the turn is also tried without it
	turnRetry    = 10 * time.Millisecond  // how often it is then tried
	turnTimeout  = 2 * time.Second        // leaseOptions.TurnTimeout when zero
)

// Names of the lease's files in the data directory.
const (
	lockName  = "lock"
	queueName = "lock.queue"
)

// leaseOptions are the options of newLease. The zero value is right.
type leaseOptions struct {
	TurnTimeout time.Duration // 0: turnTimeout
	Log         *slog.Logger  // nil: silent
	Idle        func()        // called every tick while the turn is held, without any lock; nil: nothing
	Patience    time.Duration // 0: turnPatience
}

// lease is one process's access to the data directory. All methods are safe
// for concurrent use, and none may be called by open, close or Idle except
// flags and mark.
type lease struct {
	dir, path, queue string
	o                leaseOptions
	instance         [16]byte
	open             func(foreign bool) error
	close            func() error

	done  chan struct{}  // closed by shutdown
	ticks sync.WaitGroup // running ticks
	bits  atomic.Uint32  // failure flags, as of the last turn
	state atomic.Uint64  // see stateRefs

	checkedAt atomic.Int64 // when the tick last looked, or the turn began; Unix nanoseconds

	mu        sync.Mutex
	freed     *sync.Cond // turn became nil
	turn      *turn      // from the lock to the unlock, open and close included
	held      bool       // turn is open for calls, or for the last of them
	sharedAt  time.Time  // when another process was last met
	owed      bool       // a foreign turn that open has not been told of with success
	round     *round     // calls that wait
	acquiring bool       // an acquirer runs
	kept      *queueWait // a wait for the queue that has not ended
	closed    bool       // shutdown was called
	dead      bool       // abandon was called
}

// The state of the turn as enter and leave see it, in one word, because among
// busy goroutines a mutex would keep the tick from its work. The bits are set
// under lease.mu; stateOpen and stateEnding are clear while no turn is held.
const (
	stateRefs   = 1<<30 - 1 // calls inside
	stateOpen   = 1 << 30   // calls are let in
	stateEnding = 1 << 31   // the call that brings stateRefs to 0 gives up the turn
	stateUse    = 1 << 32   // one call let in; the count shows idleness without a clock
)

// round is the calls that get the next turn together. Its fields change under
// lease.mu until done is closed.
type round struct {
	done    chan struct{}
	err     error
	waiting int
}

// newLease returns a lease on the directory dir, which must exist. It takes
// no turn. open is called with the turn taken, and is told whether another
// process may have had it since open last succeeded; close is called before
// the turn is given up, once for every open that returned nil.
func newLease(dir string, o leaseOptions, open func(foreign bool) error, close func() error) (*lease, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the data directory: %w", err)
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("finding the data directory: %w", err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("finding the data directory: %s is not a directory", dir)
	}
	if o.TurnTimeout <= 0 {
		o.TurnTimeout = turnTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Patience <= 0 {
		o.Patience = turnPatience
	}
	l := &lease{
		dir: dir, path: filepath.Join(dir, lockName), queue: filepath.Join(dir, queueName),
		o: o, open: open, close: close,
		done: make(chan struct{}), round: newRound(), owed: true,
	}
	rand.Read(l.instance[:])
	l.freed = sync.NewCond(&l.mu)
	return l, nil
}

func newRound() *round { return &round{done: make(chan struct{})} }

// enter returns when the turn is held and open is done; each enter that
// returns nil needs one leave. It gives the error of ctx, of open or of the
// file system, storage.ErrUnavailable when there is no turn in time, and
// storage.ErrClosed after shutdown.
func (l *lease) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	uses, ok := l.join()
	if !ok {
		return l.await(ctx)
	}
	if uses%hurryEvery == 0 {
		l.hurry()
	}
	return nil
}

// join enters an open turn, and says how many calls did so before.
func (l *lease) join() (uses uint64, ok bool) {
	for s := l.state.Load(); s&stateOpen != 0; s = l.state.Load() {
		if l.state.CompareAndSwap(s, s+stateUse+1) {
			return s / stateUse, true
		}
	}
	return 0, false
}

// hurryEvery is after how many calls one of them sees to a late tick.
const hurryEvery = 256

// hurry does the tick's most urgent work if the tick is late, as it is among
// goroutines that never wait. It is called inside the turn, which therefore
// does not end meanwhile.
func (l *lease) hurry() {
	now := time.Now()
	last := l.checkedAt.Load()
	if now.UnixNano()-last < int64(tickEvery+tickEvery/10) || !l.checkedAt.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	l.mu.Lock()
	t := l.turn
	l.mu.Unlock()
	if l.asked(t) {
		l.mu.Lock()
		l.sharedAt = now
		l.judgeLocked(true, now, false)
		l.mu.Unlock()
	}
}

// leave ends a call that enter let in. The last call of an ending turn closes
// and gives it up.
func (l *lease) leave() {
	if s := l.state.Add(^uint64(0)); s&stateRefs == 0 && s&stateEnding != 0 {
		l.mu.Lock()
		l.releaseLocked()
	}
}

// await joins the calls that wait, and waits for the next turn.
func (l *lease) await(ctx context.Context) error {
	r, err := l.queueUp()
	if r == nil {
		return err
	}
	timer := time.NewTimer(l.o.TurnTimeout)
	defer timer.Stop()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		if l.leaveRound(r) && r.err == nil {
			l.leave() // the grant came in the same instant
		}
		return ctx.Err()
	case <-timer.C:
		if l.leaveRound(r) {
			return r.err
		}
		return l.unavailable()
	}
}

// queueUp joins the waiting round. It returns nil if the call is refused, or
// if a turn has opened and let it in.
func (l *lease) queueUp() (*round, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.refusal(); err != nil {
		return nil, err
	}
	if _, ok := l.join(); ok {
		return nil, nil
	}
	l.round.waiting++
	l.startLocked()
	return l.round, nil
}

// leaveRound takes one call out of r, unless r was granted or refused.
func (l *lease) leaveRound(r *round) (ended bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-r.done:
		return true
	default:
		r.waiting--
		return false
	}
}

// refusal says why no call is let in any more. It needs l.mu.
func (l *lease) refusal() error {
	switch {
	case l.closed:
		return storage.ErrClosed
	case l.dead:
		return fmt.Errorf("the engine failed in this process: %w", storage.ErrUnavailable)
	}
	return nil
}

// unavailable names the holder as far as the record tells.
func (l *lease) unavailable() error {
	rec, err := readHolder(l.path)
	if err != nil || rec.pid == 0 {
		return fmt.Errorf("waiting %v for the store: %w", l.o.TurnTimeout, storage.ErrUnavailable)
	}
	since := time.Unix(0, int64(rec.since)).UTC().Format(time.RFC3339)
	return fmt.Errorf("waiting %v for the store, held by process %d since %s: %w", l.o.TurnTimeout, rec.pid, since, storage.ErrUnavailable)
}

// shutdown refuses calls that come or wait, waits for those inside, closes
// and gives up the turn. A wait that the kernel does not interrupt is left
// behind: it ends, and lets go at once, when its lock comes.
func (l *lease) shutdown() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
		l.endLocked(storage.ErrClosed, 0)
	}
	l.drainLocked()
	for l.turn != nil {
		l.freed.Wait()
	}
	l.mu.Unlock()
	l.ticks.Wait()
}

// abandon gives up a turn whose store can no longer be closed. Calls that
// come or wait get storage.ErrUnavailable, those inside finish first; after
// the last one the turn is unlocked without a call of close. The lease is of
// no use afterwards.
func (l *lease) abandon() {
	l.mu.Lock()
	l.dead = true
	l.endLocked(l.refusal(), 0)
	l.drainLocked()
	l.mu.Unlock()
}

// drainLocked lets no further call in and releases the turn as soon as none
// is inside.
func (l *lease) drainLocked() {
	if l.held {
		l.state.And(^uint64(stateOpen))
		l.state.Or(stateEnding)
		l.releaseLocked()
		l.mu.Lock()
	}
}

// endLocked ends the waiting round: with an error, or, when err is nil, by
// letting its calls into the turn, whose state becomes bits.
func (l *lease) endLocked(err error, bits uint64) {
	r := l.round
	l.round = newRound()
	r.err = err
	if err == nil {
		l.state.Add(bits + stateUse + uint64(r.waiting))
	}
	close(r.done)
}

// startLocked starts the acquirer if calls wait and nothing is under way.
func (l *lease) startLocked() {
	if l.round.waiting > 0 && !l.acquiring && l.turn == nil {
		l.acquiring = true
		go l.acquire()
	}
}

// releaseLocked closes the store and gives up the turn, if it is ending and no
// call is inside. It needs l.mu and unlocks it.
func (l *lease) releaseLocked() (over bool) {
	for {
		s := l.state.Load()
		if !l.held || s&stateEnding == 0 || s&stateRefs != 0 {
			l.mu.Unlock()
			return false
		}
		if l.state.CompareAndSwap(s, s&^(stateOpen|stateEnding)) {
			break
		}
	}
	t := l.turn
	l.held = false
	close(t.over)
	dead := l.dead
	l.mu.Unlock()
	if !dead {
		if err := l.close(); err != nil {
			l.o.Log.Error("closing the store at the end of a turn", slog.Any("error", err))
		}
	}
	l.mu.Lock()
	t.release() // under mu, so that amend never meets a turn that is over
	l.turn = nil
	l.startLocked()
	l.freed.Broadcast()
	l.mu.Unlock()
	return true
}

// tick watches over t until it ends.
func (l *lease) tick(t *turn) {
	defer t.queue.Close()
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	for {
		select {
		case <-t.over:
			return
		case <-ticker.C:
		}
		if l.o.Idle != nil {
			l.o.Idle()
		}
		if l.check(t) {
			return
		}
	}
}

// check ends t if somebody waits for it, if it has been idle for long enough,
// or if its file is gone. It reports that t has ended.
func (l *lease) check(t *turn) bool {
	asked := l.asked(t)
	gone := !asked && l.gone(t)
	now := time.Now()
	l.checkedAt.Store(now.UnixNano())
	l.mu.Lock()
	if !l.held || l.turn != t {
		l.mu.Unlock()
		return true
	}
	if asked {
		l.sharedAt = now
	}
	state := l.state.Load()
	if state&stateRefs > 0 || state/stateUse != t.uses {
		t.used, t.uses = now, state/stateUse
	}
	if now.Sub(t.since) >= turnMinimum {
		l.judgeLocked(asked || gone, now, now.Sub(t.used) >= turnLinger)
	}
	return l.releaseLocked()
}

// judgeLocked decides whether a turn past its minimum goes on.
func (l *lease) judgeLocked(yield bool, now time.Time, idle bool) {
	switch {
	case yield:
		l.state.And(^uint64(stateOpen))
		l.state.Or(stateEnding)
	case l.state.Load()&stateOpen == 0: // yields already
	case idle || now.Sub(l.sharedAt) < turnShared:
		l.state.Or(stateEnding)
	default:
		l.state.And(^uint64(stateEnding))
	}
}

// gone reports that a lock file was deleted or replaced, or that this cannot
// be seen.
func (l *lease) gone(t *turn) bool {
	return !at(t.lockInfo, l.path) || !at(t.queueInfo, l.queue)
}

// asked reports that somebody is in the queue, or that it cannot be seen.
func (l *lease) asked(t *turn) bool {
	free, err := probe(t.queue)
	return err != nil || !free
}

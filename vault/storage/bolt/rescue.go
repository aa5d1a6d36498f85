package bolt

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// Every call into bbolt runs inside rescue, and every call that may touch the
// disk is counted by a watch. A panic or a fault on the mapped file becomes an
// error; a call that does not come back is noticed. What was panicked with
// goes no further than its type: bbolt's texts may quote keys.

const (
	stallAfter = 5 * time.Second  // a call older than this stops new calls
	failAfter  = 30 * time.Second // a call older than this is reported to Options.OnFail
	tellAfter  = 5 * time.Second  // how long a caller waits for a commit or line that has started
)

// errPanic is what rescue makes of a panic or fault.
var errPanic = fmt.Errorf("structure fault: %w", storage.ErrDamaged)

// rescue runs f and turns a panic or a memory fault into errPanic.
func rescue(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%T: %w", r, errPanic)
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	return f()
}

// watch counts running calls in two generations. The tick starts a new
// generation when the older one has drained, so a call that hangs keeps the
// older one from draining, and its age is known without a clock per call.
type watch struct {
	gen     atomic.Uint32
	running [2]atomic.Int64
	flipped atomic.Int64 // Unix nanoseconds of the last flip
}

// enter counts a call in; the result goes to leave.
func (w *watch) enter() uint32 {
	g := w.gen.Load() & 1
	w.running[g].Add(1)
	return g
}

func (w *watch) leave(g uint32) { w.running[g].Add(-1) }

// stalled returns for how long, at least, the oldest call has been running.
// Only one goroutine calls it at a time.
func (w *watch) stalled(now time.Time) time.Duration {
	g := w.gen.Load()
	if w.running[(g+1)&1].Load() == 0 {
		w.gen.Store(g + 1)
		w.flipped.Store(now.UnixNano())
		return 0
	}
	return now.Sub(time.Unix(0, w.flipped.Load()))
}

// tick looks for a call that hangs. The lease runs it while the turn is held.
func (s *Store) tick() {
	age := s.watch.stalled(time.Now())
	switch {
	case age < stallAfter:
		if s.stalled.Swap(false) {
			s.log.Warn("the disk answers again")
		}
	case !s.stalled.Swap(true):
		s.log.Error("the disk does not answer", slog.Duration("for", age))
	case age >= failAfter && !s.told.Swap(true):
		s.onFail(fmt.Errorf("the disk has not answered for %v: %w", age.Round(time.Second), storage.ErrUnavailable))
	}
}

// usable refuses calls while the engine cannot work.
func (s *Store) usable() error {
	if s.stalled.Load() {
		return fmt.Errorf("the disk does not answer: %w", storage.ErrUnavailable)
	}
	return nil
}

var errIOMarked = fmt.Errorf("a disk error was met; check the disk, reboot, then run solekey doctor --clear: %w", storage.ErrUnavailable)

// diskError handles EIO: whether the data reached the medium is unknown, and
// a retry that succeeds proves nothing, so every process stops here.
func (s *Store) diskError(err error) {
	s.ioError.Store(true)
	s.log.Error("disk error; the store is stopped until solekey doctor --clear")
	if merr := s.lease.mark(flagIO); merr != nil {
		s.log.Error("marking the store failed", slog.Any("error", merr))
	}
	s.onFail(fmt.Errorf("disk error: %w", err))
}

// writePanic handles a panic inside a write: bbolt's next write and Close
// would hang, so its map is leaked, its lock dropped and the turn given up.
func (s *Store) writePanic(h *handle, err error) {
	h.dead.Store(true)
	s.log.Error("a write met a damaged structure; the store is read-only until solekey doctor --clear")
	merr := s.lease.mark(flagPanic)
	if h.file != nil {
		merr = errors.Join(merr, unlockFile(h.file))
	}
	if merr != nil {
		s.log.Error("marking the store failed", slog.Any("error", merr))
	}
	s.lease.abandon()
	s.onFail(fmt.Errorf("writing the store: %w", err))
}

func (s *Store) onFail(err error) {
	if s.o.OnFail != nil {
		s.o.OnFail(err)
	}
}

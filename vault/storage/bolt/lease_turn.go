package bolt

import (
	"fmt"
	"os"
	"time"
)

// turn is the ownership of the directory. The fields from since on belong to
// its tick once it is granted.
type turn struct {
	lock    *os.File // locked
	queue   *os.File // to see whether somebody waits
	barrier *os.File // the directory, locked; nil where the system cannot
	over    chan struct{}

	lockInfo, queueInfo os.FileInfo

	since, used time.Time
	uses        uint64
}

// queueWait is one wait for the queue. It may outlive the acquisition that
// began it. claimed and granted change under lease.mu.
type queueWait struct {
	file    *os.File
	since   time.Time
	got     chan struct{} // closed when the queue is locked, or err set, for the acquirer
	err     error
	claimed bool
	granted bool
}

// drop releases a turn that has no tick.
func (t *turn) drop() {
	t.release()
	t.queue.Close() // a nil file answers with an error
}

// release unlocks and closes what the turn has locked. The queue is left to
// the tick, which may be trying it.
func (t *turn) release() {
	if t.barrier != nil {
		letGo(t.barrier)
	}
	letGo(t.lock)
}

// letGo unlocks and closes f. The unlock is explicit because a child that is
// being started may share the descriptor until it executes.
func letGo(f *os.File) {
	funlock(f)
	f.Close()
}

// acquire is the acquirer: it gets one turn for the waiting round, or finds
// that nobody waits.
func (l *lease) acquire() {
	t, err := l.take()
	switch {
	case err != nil:
		l.mu.Lock()
		l.acquiring = false
		l.endLocked(fmt.Errorf("taking the turn: %w", err), 0)
		l.mu.Unlock()
	case t != nil:
		l.admit(t)
	}
}

// unwanted reports that no call waits, in which case the acquirer must end
// without touching the lease again. w, if not nil, is left to itself.
func (l *lease) unwanted(w *queueWait) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.unwantedLocked() {
		return false
	}
	if w != nil {
		l.disclaimLocked(w)
	}
	return true
}

func (l *lease) unwantedLocked() bool {
	if l.round.waiting > 0 && !l.closed && !l.dead {
		return false
	}
	l.acquiring = false
	return true
}

// take gets the turn. It returns nil if nobody waits for it any more.
func (l *lease) take() (*turn, error) {
	for !l.unwanted(nil) {
		f, err := openLock(l.path)
		if err != nil {
			return nil, err
		}
		got, err := l.line(f)
		if err != nil || !got {
			f.Close()
			return nil, err
		}
		if l.unwanted(nil) { // a lock may come long after its callers, and the lease, have gone
			letGo(f)
			return nil, nil
		}
		t, err := l.confirm(f)
		if err != nil || t != nil {
			return t, err
		}
	}
	return nil, nil
}

// confirm makes a turn of the locked file f, or nil if f is no longer the
// file at the path.
func (l *lease) confirm(f *os.File) (*turn, error) {
	t := &turn{lock: f, over: make(chan struct{})}
	got, err := l.bar(t)
	if got && err == nil {
		err = t.look(l.queue)
	}
	if !got || err != nil || !at(t.lockInfo, l.path) {
		t.drop()
		return nil, err
	}
	return t, nil
}

// bar locks the directory for t. Another process has it only if the file lock
// was replaced while it held the turn, which it sees and yields to. If instead
// it is the file of t that has gone, that process sees nothing amiss and
// nobody in the queue: to wait for it would be to wait for ever.
func (l *lease) bar(t *turn) (got bool, err error) {
	if t.lockInfo, err = t.lock.Stat(); err != nil {
		return false, err
	}
	for at(t.lockInfo, l.path) {
		if t.barrier, got, err = lockDir(l.dir); got || err != nil {
			return got, err
		}
		select {
		case <-l.done:
			return false, nil
		case <-time.After(turnRetry):
		}
	}
	return false, nil
}

// look opens the queue and notes which file that is.
func (t *turn) look(queue string) (err error) {
	if t.queue, err = openLock(queue); err != nil {
		return err
	}
	t.queueInfo, err = t.queue.Stat()
	return err
}

// line queues for the turn and locks f. It returns false if nobody waits any
// more.
func (l *lease) line(f *os.File) (bool, error) {
	w, q, err := l.stand()
	if err != nil {
		return false, err
	}
	if w != nil {
		var got bool
		if q, got, err = l.sit(w, f); q == nil {
			return got, err
		}
	}
	defer letGo(q)
	got, err := flock(f, false, false)
	if err != nil || got {
		return got, err
	}
	l.meet()
	return flock(f, false, true)
}

// stand gets the queue at once (q), or a place in it (w).
func (l *lease) stand() (w *queueWait, q *os.File, err error) {
	if w = l.claim(); w != nil {
		return w, nil, nil
	}
	if q, err = openLock(l.queue); err != nil {
		return nil, nil, err
	}
	got, err := flock(q, false, false)
	if err != nil {
		q.Close()
		return nil, nil, err
	}
	if got {
		return nil, q, nil
	}
	l.meet()
	w = &queueWait{file: q, since: time.Now(), got: make(chan struct{}), claimed: true}
	l.mu.Lock()
	l.kept = w
	l.mu.Unlock()
	go l.hold(w)
	return w, nil, nil
}

// claim takes over the wait that an earlier acquisition left unfinished, if
// its file is still the queue.
func (l *lease) claim() *queueWait {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.kept
	if w == nil {
		return nil
	}
	if fi, err := w.file.Stat(); err != nil || !at(fi, l.queue) {
		l.kept = nil
		return nil
	}
	w.claimed = true
	return w
}

// hold waits in the kernel for the queue, and lets go of it at once if no
// acquirer claims it then.
func (l *lease) hold(w *queueWait) {
	_, err := flock(w.file, false, true)
	l.mu.Lock()
	w.err, w.granted = err, true
	if l.kept == w {
		l.kept = nil
	}
	claimed := w.claimed
	l.mu.Unlock()
	if claimed {
		close(w.got)
		return
	}
	letGo(w.file)
}

// disclaimLocked ends the acquirer's interest in w.
func (l *lease) disclaimLocked(w *queueWait) {
	w.claimed = false
	if w.granted {
		letGo(w.file)
	}
}

// sit waits for w, and after some patience also tries the turn without it,
// because the queue's head may be frozen. It returns the locked queue, or
// whether f was locked without.
func (l *lease) sit(w *queueWait, f *os.File) (q *os.File, got bool, err error) {
	timer := time.NewTimer(l.o.Patience - time.Since(w.since))
	defer timer.Stop()
	for {
		select {
		case <-w.got:
			if w.err != nil {
				w.file.Close()
				return nil, false, w.err
			}
			return w.file, false, nil
		case <-l.done:
		case <-timer.C:
		}
		if l.unwanted(w) {
			return nil, false, nil
		}
		if got, err = flock(f, false, false); got || err != nil {
			l.mu.Lock()
			l.disclaimLocked(w)
			l.mu.Unlock()
			return nil, got, err
		}
		timer.Reset(turnRetry)
	}
}

// meet notes that another process is around.
func (l *lease) meet() {
	l.mu.Lock()
	l.sharedAt = time.Now()
	l.mu.Unlock()
}

// admit opens the store under t and lets the waiting calls in.
func (l *lease) admit(t *turn) {
	l.mu.Lock()
	if l.unwantedLocked() {
		t.drop()
		l.mu.Unlock()
		return
	}
	l.turn = t
	l.mu.Unlock()
	err := l.begin(t)
	l.mu.Lock()
	l.acquiring = false
	if err != nil {
		t.drop()
		l.turn = nil
		l.endLocked(err, 0)
		l.freed.Broadcast()
		l.mu.Unlock()
		return
	}
	t.since = time.Now()
	t.used = t.since
	l.checkedAt.Store(t.since.UnixNano())
	l.held = true
	l.ticks.Go(func() { l.tick(t) })
	if l.closed || l.dead {
		l.endLocked(nil, stateEnding)
	} else {
		l.endLocked(nil, stateOpen)
	}
	l.releaseLocked()
}

// begin signs the holder record and opens the store.
func (l *lease) begin(t *turn) error {
	if err := l.signTurn(t); err != nil {
		return err
	}
	if err := l.open(l.owed); err != nil {
		return err
	}
	l.owed = false
	return nil
}

// signTurn puts this lease's name into the record and keeps the flags. It
// holds mu, as between its look and its write amend would be undone.
func (l *lease) signTurn(t *turn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rec, err := readRecord(t.lock)
	if err != nil {
		return fmt.Errorf("reading the holder record: %w", err)
	}
	if rec.instance != l.instance {
		l.owed = true // beyond this only the acquirer uses owed
		l.sharedAt = time.Now()
	}
	l.bits.Store(rec.flags)
	if err := writeRecord(t.lock, l.sign(rec.flags)); err != nil {
		return fmt.Errorf("writing the holder record: %w", err)
	}
	return nil
}

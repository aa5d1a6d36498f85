package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// One goroutine commits. It takes a job and everything that waits, and applies
// all of it in one transaction: the group is what queued while the last one
// was syncing, so there is no timer. A job that loses its compare-and-set is
// left out before its first write; if anything else fails, the transaction is
// rolled back and every job runs alone once, so that none pays for another.

const (
	maxJobs     = 256
	maxJobBytes = storage.MaxBatch
	// headroom is what a commit without values may go beyond MaxSize, so that
	// a revocation gets through on a store that is full.
	headroom = 4 << 20
)

// A job is queued, then started by the committer or dropped by its caller.
const (
	jobQueued int32 = iota
	jobStarted
	jobDropped
)

// job is one Commit on its way. It holds copies of the caller's values, as the
// caller may go before it ends.
type job struct {
	id    identity.ID
	ifRev storage.Rev
	batch storage.Batch
	size  int
	state atomic.Int32
	rev   storage.Rev
	err   error
	done  chan struct{}
}

func newJob(id identity.ID, ifRev storage.Rev, b storage.Batch) *job {
	j := &job{id: id, ifRev: ifRev, size: b.Size(), done: make(chan struct{})}
	buf := make([]byte, 0, j.size)
	keep := func(v []byte) []byte {
		if v == nil {
			return nil
		}
		n := len(buf)
		buf = append(buf, v...)
		return buf[n:len(buf):len(buf)]
	}
	j.batch.Meta = keep(b.Meta)
	j.batch.Ops = make([]storage.Op, len(b.Ops))
	for i, op := range b.Ops {
		j.batch.Ops[i] = storage.Op{Key: op.Key, Val: keep(op.Val)}
	}
	return j
}

// adds reports whether the job brings values.
func (j *job) adds() bool {
	for _, op := range j.batch.Ops {
		if op.Val != nil {
			return true
		}
	}
	return false
}

// Commit implements [storage.Store].
func (s *Store) Commit(ctx context.Context, id identity.ID, ifRev storage.Rev, b storage.Batch) (storage.Rev, error) {
	if err := storage.CheckBatch(b); err != nil {
		return 0, err
	}
	if err := s.enter(ctx); err != nil {
		return 0, fmt.Errorf("committing: %w", err)
	}
	j := newJob(id, ifRev, b)
	s.queue.add(j)
	rev, err := j.wait(ctx)
	if err != nil {
		return 0, fmt.Errorf("committing: %w", err)
	}
	return rev, nil
}

// wait returns the outcome of the job. The committer ends the job's turn.
func (j *job) wait(ctx context.Context) (storage.Rev, error) {
	timer := time.NewTimer(tellAfter)
	defer timer.Stop()
	select {
	case <-j.done:
		return j.rev, j.err
	case <-ctx.Done():
		if j.state.CompareAndSwap(jobQueued, jobDropped) {
			return 0, ctx.Err()
		}
	case <-timer.C:
		if j.state.CompareAndSwap(jobQueued, jobDropped) {
			return 0, errLate(storage.ErrUnavailable)
		}
		return 0, errLate(storage.ErrUnknown)
	}
	select {
	case <-j.done:
		return j.rev, j.err
	case <-timer.C:
		return 0, errLate(storage.ErrUnknown)
	}
}

// errLate reports a disk that keeps a caller waiting.
func errLate(err error) error { return fmt.Errorf("waiting %v for the disk: %w", tellAfter, err) }

// queue is the jobs that wait for the committer.
type queue struct {
	mu   sync.Mutex
	jobs []*job
	wake chan struct{} // holds a token while jobs may wait; closed to end the committer
}

func (q *queue) add(j *job) {
	q.mu.Lock()
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take moves what waits into group, within the limits of one transaction.
func (q *queue) take(group []*job) []*job {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.jobs) && n < maxJobs && (n == 0 || size+q.jobs[n].size <= maxJobBytes) {
		size += q.jobs[n].size
		n++
	}
	group = append(group, q.jobs[:n]...)
	rest := copy(q.jobs, q.jobs[n:])
	clear(q.jobs[rest:])
	q.jobs = q.jobs[:rest]
	return group
}

// commitLoop is the committer.
func (s *Store) commitLoop() {
	var group []*job
	for range s.queue.wake {
		for group = s.queue.take(group[:0]); len(group) > 0; group = s.queue.take(group[:0]) {
			s.commit(s.started(group))
			clear(group)
		}
	}
}

// started keeps the jobs whose callers still wait, and ends the turns of the
// others.
func (s *Store) started(group []*job) []*job {
	kept := group[:0]
	for _, j := range group {
		if j.state.CompareAndSwap(jobQueued, jobStarted) {
			kept = append(kept, j)
		} else {
			s.leave()
		}
	}
	return kept
}

// commit brings every job of the group to its end.
func (s *Store) commit(group []*job) {
	if sound := s.sound(group); len(sound) > 0 {
		s.commitSound(sound)
	}
	for _, j := range group {
		close(j.done)
		s.leave()
	}
}

// sound reads what each job will touch and keeps the jobs for which that goes
// well: damage met in a read costs one identity, in a write the store.
func (s *Store) sound(group []*job) []*job {
	h := s.db
	g := s.watch.enter()
	defer s.watch.leave(g)
	kept := make([]*job, 0, len(group))
	var p paths
	for _, j := range group {
		j.err = h.view(func(tx *bbolt.Tx) error {
			if err := p.open(h, tx); err != nil {
				return err
			}
			return j.touch(&p, tx)
		})
		if j.err == nil {
			kept = append(kept, j)
		}
	}
	return kept
}

// touch reads what apply will read and replace.
func (j *job) touch(p *paths, tx *bbolt.Tx) error {
	var buf [1 + storage.MaxKey]byte
	if err := p.check(j.id, []byte{tagRev}); err != nil {
		return err
	}
	for _, op := range j.batch.Ops {
		if err := p.check(j.id, tagged(&buf, op.Key)); err != nil {
			return err
		}
	}
	b, err := bucket(tx, j.id)
	if err != nil || b == nil {
		return err
	}
	if _, _, err := revision(b); err != nil {
		return err
	}
	for _, op := range j.batch.Ops {
		if len(b.Get(tagged(&buf, op.Key))) > storage.MaxValue {
			return errShape
		}
	}
	return nil
}

func (s *Store) commitSound(group []*job) {
	h := s.db
	err := s.apply(h, group)
	switch {
	case err == nil:
		s.reserve.refill(s)
	case len(group) == 1 || !definite(err):
		s.finishFailed(h, group, err)
	default:
		for _, j := range group {
			if err := s.apply(h, []*job{j}); err != nil {
				s.finishFailed(h, []*job{j}, err)
			}
		}
	}
}

// finishFailed gives jobs their error, after a last attempt for a lone job
// that failed on a full disk and brings no values.
func (s *Store) finishFailed(h *handle, group []*job, err error) {
	if errors.Is(err, storage.ErrFull) && len(group) == 1 && !group[0].adds() {
		if s.applyFull(h, group) == nil {
			return
		}
	}
	for _, j := range group {
		j.rev, j.err = 0, err
	}
}

// applyFull applies a group that adds nothing to a full store: it gives up the
// reserve and may pass MaxSize a little.
func (s *Store) applyFull(h *handle, group []*job) error {
	s.reserve.release(s)
	h.db.MaxSize += headroom
	defer func() { h.db.MaxSize -= headroom }()
	return s.apply(h, group)
}

// definite reports whether err says that nothing was applied.
func definite(err error) bool { return !errors.Is(err, storage.ErrUnknown) }

// errNothing rolls back a transaction in which every job lost.
var errNothing = errors.New("nothing to commit")

// apply runs the jobs in one transaction. Each job has its own outcome if apply
// returns nil; otherwise none was applied, or, with ErrUnknown, perhaps all.
func (s *Store) apply(h *handle, group []*job) error {
	if err := h.writable(); err != nil {
		return err
	}
	g := s.watch.enter()
	defer s.watch.leave(g)
	if err := rescue(h.guard); err != nil {
		h.dead.Store(true)
		return errDead
	}
	err := rescue(func() error {
		return h.db.Update(func(tx *bbolt.Tx) error {
			won := 0
			for _, j := range group {
				if err := j.apply(tx); err != nil {
					return err
				}
				if j.err == nil {
					won++
				}
			}
			if won == 0 {
				return errNothing
			}
			return nil
		})
	})
	if err == nil || err == errNothing {
		return nil
	}
	for _, j := range group {
		j.rev, j.err = 0, nil
	}
	return s.commitError(h, err)
}

// commitError gives the error of a failed transaction its meaning, and stops
// the engine where going on would be wrong.
func (s *Store) commitError(h *handle, err error) error {
	switch {
	case errors.Is(err, errPanic):
		s.writePanic(h, err)
		return fmt.Errorf("%w: %w", err, storage.ErrUnknown)
	case errors.Is(err, storage.ErrDamaged):
		return err
	case errors.Is(err, berrors.ErrMaxSizeReached):
		return fmt.Errorf("%s has reached its greatest size: %w", dbName, storage.ErrFull)
	case isFull(err):
		return fmt.Errorf("writing %s: %w: %w", dbName, err, storage.ErrFull)
	case isForbidden(err), errors.Is(err, berrors.ErrDatabaseNotOpen):
		return fmt.Errorf("writing %s: %w: %w", dbName, err, storage.ErrUnavailable)
	}
	if isIO(err) {
		s.diskError(err)
	}
	return fmt.Errorf("writing %s: %w: %w", dbName, err, storage.ErrUnknown)
}

// apply makes the job's changes in tx and sets its outcome. An error is one of
// the transaction, not of the job.
func (j *job) apply(tx *bbolt.Tx) error {
	b, err := bucket(tx, j.id)
	if err != nil {
		return err
	}
	var rev storage.Rev
	var meta []byte
	if b != nil {
		if rev, meta, err = revision(b); err != nil {
			return err
		}
	}
	if rev != j.ifRev {
		j.err = storage.ErrConflict
		return nil
	}
	if b == nil {
		if b, err = tx.Bucket(bucketI()).CreateBucket(j.id[:]); err != nil {
			return err
		}
	}
	if j.batch.Meta != nil {
		meta = j.batch.Meta
	}
	if err := j.write(b, rev+1, meta); err != nil {
		return err
	}
	j.rev, j.err = rev+1, nil
	return nil
}

func (j *job) write(b *bbolt.Bucket, rev storage.Rev, meta []byte) error {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, revLen+len(meta)), uint64(rev))
	if err := b.Put([]byte{tagRev}, append(head, meta...)); err != nil {
		return err
	}
	var buf [1 + storage.MaxKey]byte
	for _, op := range j.batch.Ops {
		key := tagged(&buf, op.Key)
		var err error
		if op.Val == nil {
			err = b.Delete(key)
		} else {
			err = b.Put(key, op.Val)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

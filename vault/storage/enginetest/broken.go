package enginetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// The broken engines. Each breaks one clause of an engine that is sound.

// noCAS commits whatever the revision is.
type noCAS struct{ storage.Backend }

func withoutCAS(b storage.Backend) storage.Backend { return noCAS{b} }

func (s noCAS) Commit(ctx context.Context, id identity.ID, _ storage.Rev, b storage.Batch) (storage.Rev, error) {
	for {
		r, err := s.Get(ctx, id)
		if err != nil {
			return 0, err
		}
		rev, err := s.Backend.Commit(ctx, id, r.Rev, b)
		if !errors.Is(err, storage.ErrConflict) {
			return rev, err
		}
	}
}

// textKeys keeps keys as a text column would.
type textKeys struct{ storage.Backend }

func asText(b storage.Backend) storage.Backend { return textKeys{b} }

func (s textKeys) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	kept := storage.Batch{Meta: b.Meta}
	for _, op := range b.Ops {
		op.Key = strings.ToValidUTF8(strings.TrimRight(op.Key, "\x00"), "?")
		if _, given := find(kept.Ops, op.Key); op.Key != "" && !given {
			kept.Ops = append(kept.Ops, op)
		}
	}
	return s.Backend.Commit(ctx, id, rev, kept)
}

// zeroID lists the store's own record among the identities.
type zeroID struct{ storage.Backend }

func withZeroID(b storage.Backend) storage.Backend { return zeroID{b} }

func (s zeroID) Identities(ctx context.Context, after identity.ID, limit int) ([]storage.Ident, error) {
	all, err := s.Backend.Identities(ctx, after, limit)
	if err == nil && after.IsZero() {
		all = append([]storage.Ident{{Rev: 1, Meta: []byte{0}}}, all...)
	}
	return all, err
}

// noLimits lets a value through that is too large, by cutting it.
type noLimits struct{ storage.Backend }

func withoutLimits(b storage.Backend) storage.Backend { return noLimits{b} }

func (s noLimits) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	for i, op := range b.Ops {
		b.Ops[i].Val = op.Val[:min(len(op.Val), storage.MaxValue)]
	}
	return s.Backend.Commit(ctx, id, rev, b)
}

// twoReads reads key by key.
type twoReads struct{ storage.Backend }

func inTwoReads(b storage.Backend) storage.Backend { return twoReads{b} }

func (s twoReads) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	all, err := s.Backend.Get(ctx, id)
	all.Vals = make(map[string][]byte)
	for _, k := range keys {
		runtime.Gosched()
		var r storage.Result
		if r, err = s.Backend.Get(ctx, id, k); err != nil {
			break
		}
		if v, ok := r.Vals[k]; ok {
			all.Vals[k] = v
		}
	}
	return all, err
}

// splitGroups appends the bodies of a group one by one.
type splitGroups struct{ storage.Backend }

func withSplitGroups(b storage.Backend) storage.Backend { return splitGroups{b} }

func (s splitGroups) Append(ctx context.Context, bodies ...[]byte) (first uint64, err error) {
	for i, b := range bodies {
		n, err := s.Backend.Append(ctx, b)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			first = n
		}
	}
	return first, nil
}

// staleReads answers from a copy for a moment, and keeps cells for ever.
type staleReads struct {
	storage.Backend
	mu    sync.Mutex
	at    time.Time
	id    identity.ID
	r     storage.Result
	cells map[identity.ID]storage.Cell
}

func withStaleReads(b storage.Backend) storage.Backend {
	return &staleReads{Backend: b, cells: make(map[identity.ID]storage.Cell)}
}

func (s *staleReads) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == id && time.Since(s.at) < 5*time.Millisecond {
		return s.r, nil
	}
	r, err := s.Backend.Get(ctx, id, keys...)
	s.at, s.id, s.r = time.Now(), id, r
	return r, err
}

func (s *staleReads) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.cells[id]; ok {
		return c, nil
	}
	c, err := s.Backend.Cell(ctx, id)
	if err == nil {
		s.cells[id] = c
	}
	return c, err
}

// poisoned fails every call that runs beside a bad one.
type poisoned struct {
	storage.Backend
	bad *atomic.Int64
}

func withPoison(b storage.Backend) storage.Backend { return poisoned{b, new(atomic.Int64)} }

func (s poisoned) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	if err := storage.CheckBatch(b); err != nil {
		s.bad.Store(time.Now().Add(time.Millisecond).UnixNano())
		return 0, err
	}
	if time.Now().UnixNano() < s.bad.Load() {
		return 0, errors.New("the group failed")
	}
	return s.Backend.Commit(ctx, id, rev, b)
}

// lateCommits commits although the caller has gone, and says that it did not.
type lateCommits struct{ storage.Backend }

func withLateCommits(b storage.Backend) storage.Backend { return lateCommits{b} }

func (s lateCommits) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	rev, err := s.Backend.Commit(context.WithoutCancel(ctx), id, rev, b)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("committing: %w", ctx.Err())
	}
	return rev, err
}

// noDeletes keeps what is deleted.
type noDeletes struct{ storage.Backend }

func withoutDeletes(b storage.Backend) storage.Backend { return noDeletes{b} }

func (s noDeletes) Commit(ctx context.Context, id identity.ID, rev storage.Rev, b storage.Batch) (storage.Rev, error) {
	kept := storage.Batch{Meta: b.Meta}
	for _, op := range b.Ops {
		if op.Val != nil {
			kept.Ops = append(kept.Ops, op)
		}
	}
	return s.Backend.Commit(ctx, id, rev, kept)
}

// noErase only remembers what is erased.
type noErase struct {
	storage.Backend
	erased map[identity.ID]bool
}

func withoutErase(b storage.Backend) storage.Backend {
	return noErase{b, make(map[identity.ID]bool)}
}

func (s noErase) EraseCell(_ context.Context, id identity.ID) error {
	s.erased[id] = true
	return nil
}

func (s noErase) Cell(ctx context.Context, id identity.ID) (storage.Cell, error) {
	if s.erased[id] {
		return storage.Cell{}, storage.ErrErased
	}
	return s.Backend.Cell(ctx, id)
}

// sharedResults hands out its own copy.
type sharedResults struct {
	storage.Backend
	kept map[identity.ID]storage.Result
}

func withSharedResults(b storage.Backend) storage.Backend {
	return sharedResults{b, make(map[identity.ID]storage.Result)}
}

func (s sharedResults) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	if r, ok := s.kept[id]; ok {
		return r, nil
	}
	r, err := s.Backend.Get(ctx, id, keys...)
	if err == nil {
		s.kept[id] = r
	}
	return r, err
}

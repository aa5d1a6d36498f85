package bolt

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/vault/storage"
)

// Stamp is a state of a data directory: of two that are equal, nothing was
// committed, no cell stored or erased and no line written in between.
type Stamp struct {
	tx      uint64 // last transaction of vault.db; 0: it does not open
	changes uint64 // of vault.cells; 0: its headers do not open
	lines   uint64 // of the log; 0: it takes none
	hash    [32]byte
}

// Stamp returns the present state. Files that do not open have none: nothing
// can be committed to them either.
func (s *Store) Stamp(ctx context.Context) (Stamp, error) {
	if err := s.enter(ctx); err != nil {
		return Stamp{}, fmt.Errorf("taking the state of the store: %w", err)
	}
	defer s.leave()
	return s.stamp(ctx)
}

// Unchanged runs f if the state is still since, else it returns
// [storage.ErrConflict]. No process has the turn meanwhile, so none writes
// into the directory: f may give its name to another one. f must not call s.
func (s *Store) Unchanged(ctx context.Context, since Stamp, f func() error) error {
	if err := s.enter(ctx); err != nil {
		return fmt.Errorf("taking the state of the store: %w", err)
	}
	defer s.leave()
	is, err := s.stamp(ctx)
	if err != nil {
		return err
	}
	if is != since {
		return fmt.Errorf("the store changed meanwhile: %w", storage.ErrConflict)
	}
	return f()
}

// stamp is for a call that has entered the turn.
func (s *Store) stamp(ctx context.Context) (st Stamp, err error) {
	g := s.watch.enter()
	defer s.watch.leave(g)
	err = s.db.view(func(tx *bbolt.Tx) error { st.tx = uint64(tx.ID()); return nil })
	if err != nil && !errors.Is(err, storage.ErrDamaged) {
		return st, fmt.Errorf("taking the state of %s: %w", dbName, err)
	}
	if st.changes, err = s.cells.changes(); err != nil && !errors.Is(err, storage.ErrDamaged) {
		return st, fmt.Errorf("taking the state of %s: %w", cellsName, err)
	}
	err = s.alone(ctx, func(j *journal) error { st.lines, st.hash = j.tail.next, j.tail.prev; return nil })
	if err != nil && ctx.Err() != nil {
		return st, ctx.Err()
	}
	return st, nil
}

// changes returns how often the file has changed.
func (c *cells) changes() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		return 0, err
	}
	return c.head.changes, nil
}

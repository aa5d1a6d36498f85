package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/vault/storage"
)

// Description is what doctor shows of a store.
type Description struct {
	Dir        string
	FileSystem string           // name of its kind
	Erasure    storage.Class    // what shredding achieves here
	Sizes      map[string]int64 // of each file that is there, by name
	Warnings   []string         // what was found and changed when the store was opened
}

// Describe returns what is known of the store without taking a turn.
func (s *Store) Describe() Description {
	d := Description{
		Dir: s.dir, FileSystem: s.fsys, Erasure: s.class,
		Sizes: make(map[string]int64), Warnings: slices.Clone(s.warn),
	}
	for _, name := range []string{dbName, cellsName, auditName, headName, reserveName} {
		if info, err := os.Lstat(s.path(name)); err == nil {
			d.Sizes[name] = info.Size()
		}
	}
	older, _ := olderLogs(s.dir)
	for _, o := range older {
		if info, err := os.Lstat(o.path); err == nil {
			d.Sizes[filepath.Base(o.path)] = info.Size()
		}
	}
	return d
}

// Check reads the whole store and returns what is structurally wrong with it,
// joined; nil means that nothing is. It changes nothing but heals cells of
// which one copy is sound. It holds the turn, so it is for stores at rest.
func (s *Store) Check(ctx context.Context) error {
	var errs []error
	if err := s.read(ctx, s.checkTree); err != nil {
		errs = append(errs, fmt.Errorf("checking %s: %w", dbName, err))
	}
	if err := s.withCells(ctx, s.cells.check); err != nil {
		errs = append(errs, fmt.Errorf("checking %s: %w", cellsName, err))
	}
	if err := s.exclusively(ctx, func(*journal) error { return nil }); err != nil {
		errs = append(errs, fmt.Errorf("checking %s: %w", auditName, err))
	}
	return errors.Join(errs...)
}

// checkTree walks every bucket and key within the caller's rescue, then every
// page.
func (s *Store) checkTree(tx *bbolt.Tx) error {
	all := tx.Bucket(bucketI())
	if all == nil {
		return errForeign
	}
	err := all.ForEach(func(id, v []byte) error {
		b := all.Bucket(id)
		if v != nil || b == nil {
			return errShape
		}
		if _, _, err := revision(b); err != nil {
			return err
		}
		return walkBucket(b)
	})
	if err != nil {
		return err
	}
	info, err := s.db.file.Stat()
	if err != nil {
		return err
	}
	return checkPages(s.db.file, info.Size(), uint64(tx.ID()))
}

// walkBucket touches every key and value, in order.
func walkBucket(b *bbolt.Bucket) error {
	var last []byte
	var sum byte
	return b.ForEach(func(k, v []byte) error {
		if v == nil || len(k) > 1+storage.MaxKey || len(v) > revLen+storage.MaxValue || last != nil && string(last) >= string(k) {
			return errShape
		}
		for i := 0; i < len(v); i += 512 {
			sum += v[i]
		}
		last = k
		return nil
	})
}

// check looks at every row.
func (c *cells) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		return err
	}
	var errs []error
	if c.lost > 0 {
		errs = append(errs, fmt.Errorf("%d rows are invalid in both copies: %w", c.lost, storage.ErrDamaged))
	}
	for id := range c.rows {
		if _, err := c.find(id); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Failed says in words why every process refuses to write, or "" if no failure
// mark stands. It takes no turn, so it does not wait.
func (s *Store) Failed(ctx context.Context) (reason string, err error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("reading the failure marks: %w", err)
	}
	rec, err := readHolder(s.lease.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a store that was never used has no record
		return "", fmt.Errorf("reading the failure marks: %w: %w", err, storage.ErrUnavailable)
	}
	var reasons []string
	if rec.flags&flagIO != 0 {
		reasons = append(reasons, "a disk error was met: nothing is read or written, cells can be erased")
	}
	if rec.flags&flagPanic != 0 {
		reasons = append(reasons, "a write met a damaged structure: the store is read-only")
	}
	return strings.Join(reasons, "; "), nil
}

// ClearFailed takes back the marks that a disk error or a damaged structure
// left, which keep every process from writing. It is for the owner, after the
// disk was checked and the machine was started anew.
func (s *Store) ClearFailed() error {
	if err := s.lease.clear(); err != nil {
		return fmt.Errorf("clearing the failure marks: %w", err)
	}
	s.ioError.Store(false)
	return nil
}

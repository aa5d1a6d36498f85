// Package bolt keeps a store in a data directory that any number of processes
// share.
//
// It implements [storage.Backend] over three files: vault.db, a bbolt database
// with one bucket per identity; vault.cells, shred keys that are overwritten
// in place; audit.jsonl, the hash-chained log, whose earlier parts lie beside it
// once it has grown large. A lease lends the directory to
// one process at a time: a call without the turn waits for it, at most
// Options.TurnTimeout, and a turn serves all goroutines of its process. No
// process needs another one to run, and a killed one loses its turn at once.
//
// What the package guarantees is the contract of package storage. Commits of
// concurrent callers share one transaction and appends share one sync. A
// damaged or truncated file gives errors, never a panic. A full disk refuses
// what adds values; a commit without values, such as a revocation, still gets
// through. Erasing a cell needs neither space nor a sound database.
//
// It reads no byte of a Meta, value or log body, and does not hide counts,
// sizes or times from who can read the directory. It refuses network file
// systems, where locks and mapped files are not coherent.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

var _ storage.Backend = (*Store)(nil)

// Options are the options of [Open] and [Create]. The zero value is right.
type Options struct {
	TurnTimeout time.Duration // how long a call waits for its turn; 0: 2 s
	MaxSize     int64         // greatest size of vault.db; 0: 8 GiB
	MaxLog      int64         // size at which audit.jsonl goes on in a new file; 0: 1 GiB
	Log         *slog.Logger  // nil: silent
	OnFail      func(error)   // called when this process cannot go on; nil: nothing

	hooks hooks
}

const (
	defaultMaxSize     = 8 << 30
	defaultTurnTimeout = 2 * time.Second
)

// Store is an open data directory. All methods are safe for concurrent use.
type Store struct {
	dir   string
	o     Options
	log   *slog.Logger
	lease *lease
	fsys  string
	class storage.Class
	warn  []string

	watch   watch
	stalled atomic.Bool // a call has been hanging for stallAfter
	told    atomic.Bool // OnFail was told of it
	ioError atomic.Bool // flagIO stands

	db      *handle // of this turn
	cells   *cells
	journal *journal
	reserve reserve

	queue     queue
	committer sync.WaitGroup
	closing   sync.Once
}

// Open opens the store in dir. It takes no turn and no lock, so it does not
// wait; whether vault.db is sound shows at the first call. It returns an error
// that wraps fs.ErrNotExist if there is no store, and [storage.ErrUnsupported]
// for a place where none can be kept.
func Open(dir string, o Options) (*Store, error) {
	info, err := os.Lstat(filepath.Join(dir, dbName))
	if err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("opening store: %s is not a regular file: %w", info.Name(), storage.ErrUnsupported)
	}
	s, err := newStore(dir, o)
	if err != nil {
		return nil, fmt.Errorf("opening store: %w", err)
	}
	s.reserve.look()
	return s, nil
}

// Create makes a store in dir, and dir itself if need be. It returns an error
// that wraps fs.ErrExist if there is one. A crash leaves no store, or a whole
// one.
func Create(dir string, o Options) (*Store, error) {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return nil, fmt.Errorf("creating store: %w", err)
	}
	s, err := newStore(dir, o)
	if err != nil {
		return nil, fmt.Errorf("creating store: %w", err)
	}
	if err := s.create(); err != nil {
		return nil, errors.Join(fmt.Errorf("creating store: %w", err), s.Close())
	}
	return s, nil
}

func newStore(dir string, o Options) (*Store, error) {
	if o.TurnTimeout <= 0 {
		o.TurnTimeout = defaultTurnTimeout
	}
	if o.MaxSize <= 0 {
		o.MaxSize = defaultMaxSize
	}
	if o.MaxLog <= 0 {
		o.MaxLog = defaultMaxLog
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, o: o, log: o.Log, queue: queue{wake: make(chan struct{}, 1)}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.settle(); err != nil {
		return nil, err
	}
	s.cells = &cells{path: s.path(cellsName), hooks: &s.o.hooks, log: s.log}
	s.journal = newJournal(dir, o.MaxLog, &s.o.hooks, s.log)
	s.reserve.path = s.path(reserveName)
	s.lease, err = newLease(dir, leaseOptions{TurnTimeout: o.TurnTimeout, Log: s.log, Idle: s.tick}, s.openTurn, s.closeTurn)
	if err != nil {
		return nil, err
	}
	s.committer.Go(s.commitLoop)
	return s, nil
}

// settle checks the directory and the file system it lies on.
func (s *Store) settle() error {
	warning, err := checkDir(s.dir)
	if err != nil {
		return err
	}
	s.warned(warning)
	s.fsys, s.class, warning, err = place(s.dir)
	if err != nil {
		return fmt.Errorf("keeping a store on %s: %w", s.fsys, err)
	}
	s.warned(warning)
	return nil
}

func (s *Store) warned(warning string) {
	if warning != "" {
		s.warn = append(s.warn, warning)
		s.log.Warn("data directory", slog.String("warning", warning))
	}
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// create makes the files of a new store under the lease. vault.db comes last,
// when the names of the others are durable: it makes the store exist.
func (s *Store) create() error {
	if err := s.lease.enter(context.Background()); err != nil {
		return err
	}
	defer s.lease.leave()
	if _, err := os.Lstat(s.path(dbName)); err == nil {
		return fmt.Errorf("%s: %w", s.path(dbName), fs.ErrExist)
	}
	if err := s.refuseOrphans(); err != nil {
		return err
	}
	if err := createCells(&s.o.hooks, s.cells.path); err != nil {
		return fmt.Errorf("writing %s: %w", cellsName, err)
	}
	if err := createJournal(&s.o.hooks, s.dir); err != nil {
		return fmt.Errorf("writing %s: %w", auditName, err)
	}
	if err := s.o.hooks.syncDir(s.dir); err != nil {
		return fmt.Errorf("syncing the data directory: %w", err)
	}
	if err := s.createDB(); err != nil {
		return fmt.Errorf("writing %s: %w", dbName, err)
	}
	if err := s.o.hooks.syncDir(s.dir); err != nil {
		return fmt.Errorf("syncing the data directory: %w", err)
	}
	s.reserve.look()
	s.reserve.refill(s)
	return s.openTurn(true)
}

// refuseOrphans keeps Create from making an empty store over the remains of
// one that has lost its database.
func (s *Store) refuseOrphans() error {
	for name, empty := range map[string]int64{cellsName: cellsStart + extentSize, auditName: 0} {
		info, err := os.Lstat(s.path(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case !info.Mode().IsRegular() || info.Size() > empty || name == cellsName && !unusedCells(s.path(name)):
			return fmt.Errorf("%s is in use but %s is missing; restore it from a backup: %w", name, dbName, storage.ErrDamaged)
		}
	}
	return nil
}

// openTurn is called by the lease with the turn just taken. A file that cannot
// be opened is remembered as an error of what needs it, so that a damaged
// database does not keep a cell from being erased.
func (s *Store) openTurn(foreign bool) error {
	flags := s.lease.flags()
	s.ioError.Store(flags&flagIO != 0)
	g := s.watch.enter()
	defer s.watch.leave(g)
	if s.ioError.Load() {
		s.db = &handle{err: errIOMarked}
	} else {
		s.db = s.openDB(flags&flagPanic != 0)
	}
	s.cells.foreign.Store(true) // its file may have been taken away and put back
	if foreign {
		s.journal.foreign.Store(true)
	}
	return nil
}

// closeTurn is called by the lease before the turn is given up.
func (s *Store) closeTurn() error {
	g := s.watch.enter()
	defer s.watch.leave(g)
	h := s.db
	s.db = nil
	if h == nil {
		return nil
	}
	return h.close()
}

// enter takes the turn for one call; leave ends the call.
func (s *Store) enter(ctx context.Context) error {
	if err := s.enterFailed(ctx); err != nil {
		return err
	}
	if s.ioError.Load() {
		s.lease.leave()
		return errIOMarked
	}
	return nil
}

// enterFailed is enter for what may run after a disk error.
func (s *Store) enterFailed(ctx context.Context) error {
	if err := s.usable(); err != nil {
		return err
	}
	return s.lease.enter(ctx)
}

func (s *Store) leave() { s.lease.leave() }

// Close waits for running calls, gives up the turn and closes every file.
// Later calls return [storage.ErrClosed]; a second Close does nothing.
func (s *Store) Close() error {
	var err error
	s.closing.Do(func() {
		s.lease.shutdown()
		close(s.queue.wake)
		s.committer.Wait()
		err = errors.Join(s.cells.close(), s.journal.close())
	})
	return err
}

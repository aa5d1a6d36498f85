package bolt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/solekey/solekey/vault/storage"
)

const (
	dbFormat  = 1
	mapSize   = 1 << 30 // so that a long read does not stall a growing write
	allocSize = 1 << 20
	lockRetry = 200 * time.Microsecond
)

// names returns the names of the buckets and fixed keys.
func bucketM() []byte   { return []byte("m") }
func bucketI() []byte   { return []byte("i") }
func keyFormat() []byte { return []byte("format") }

// handle is vault.db as opened for one turn. err says why it could not be
// opened; reads and writes then give err.
type handle struct {
	db       *bbolt.DB
	file     *os.File // bbolt's own, kept to free its lock
	err      error
	readOnly error       // why nothing can be written, or nil
	dead     atomic.Bool // bbolt's locks may be stuck: never call it again
	metas    []byte      // both root records, mapped apart from bbolt's map; nil where that is not possible
	second   int         // where the second one lies
}

// guard reads both root records of the mapped file. bbolt reads them with its
// locks held, so a file that was cut meanwhile must be met here, where a fault
// leaves nothing locked.
func (h *handle) guard() error {
	if h.metas == nil {
		return nil
	}
	const magic = metaAt
	if binary.NativeEndian.Uint32(h.metas[magic:]) != metaMagic && binary.NativeEndian.Uint32(h.metas[h.second+magic:]) != metaMagic {
		return errPanic
	}
	return nil
}

// openDB opens vault.db. It always returns a handle.
func (s *Store) openDB(readOnly bool) *handle {
	h := &handle{}
	if readOnly {
		h.readOnly = fmt.Errorf("a write met a damaged structure earlier; run solekey doctor: %w", storage.ErrDamaged)
	}
	h.err = rescue(func() error { return s.openInto(h) })
	if h.err != nil {
		h.abandon()
		if errors.Is(h.err, storage.ErrDamaged) {
			s.log.Error("vault.db cannot be used", slog.Any("error", h.err))
		}
	}
	return h
}

func (s *Store) openInto(h *handle) error {
	path := s.path(dbName)
	file, err := openChecked(path, 0)
	if err != nil && isForbidden(err) {
		h.readOnly = fmt.Errorf("%s is read-only: %w", dbName, storage.ErrDamaged)
		file, err = os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	}
	if err != nil {
		return dbOpenError(err)
	}
	h.file = file
	p, err := inspect(file)
	if err != nil {
		return err
	}
	if p.fellBack {
		s.log.Warn("vault.db has one invalid root record; the last commit before a crash may be missing")
	}
	if err := p.meta.checkFree(file); err != nil && h.readOnly == nil {
		h.readOnly = err
	}
	if h.db, err = s.openBolt(path, h); err != nil {
		return dbOpenError(err)
	}
	h.second = int(p.meta.pageSize)
	h.metas = mapFile(h.file, 2*h.second)
	return h.view(checkFormat)
}

// openBolt opens bbolt over h.file, waiting for its own lock, the second
// barrier behind the lease.
func (s *Store) openBolt(path string, h *handle) (*bbolt.DB, error) {
	o := &bbolt.Options{
		Timeout:         1,
		InitialMmapSize: initialMap(),
		FreelistType:    bbolt.FreelistArrayType,
		MaxSize:         int(min(s.o.MaxSize, math.MaxInt)),
		ReadOnly:        h.readOnly != nil,
		NoStatistics:    true,
	}
	for deadline := time.Now().Add(s.o.TurnTimeout); ; time.Sleep(lockRetry) {
		file := h.file
		o.OpenFile = func(string, int, fs.FileMode) (*os.File, error) {
			if file != nil {
				return file, nil
			}
			return openChecked(path, 0)
		}
		db, err := bbolt.Open(path, fileMode, o)
		if err == nil {
			db.AllocSize = int(min(allocSize, s.o.MaxSize/8))
			if s.o.hooks.opened != nil {
				s.o.hooks.opened(db)
			}
			return db, nil
		}
		h.file = nil // bbolt has closed it
		if !errors.Is(err, berrors.ErrTimeout) || time.Now().After(deadline) {
			return nil, err
		}
		if h.file, err = openChecked(path, 0); err != nil {
			return nil, err
		}
	}
}

func initialMap() int {
	if !sharedMap || math.MaxInt == math.MaxInt32 {
		return 0
	}
	return mapSize
}

func dbOpenError(err error) error {
	switch {
	case errors.Is(err, storage.ErrDamaged):
		return err
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is locked by a program that does not queue: %w", dbName, storage.ErrUnavailable)
	case errors.Is(err, errPlace), isNoFile(err):
		return fmt.Errorf("opening %s: %w: %w", dbName, err, storage.ErrDamaged)
	}
	return fmt.Errorf("opening %s: %w: %w", dbName, err, storage.ErrUnavailable)
}

// checkFormat refuses a database that is not ours, or newer than we are.
func checkFormat(tx *bbolt.Tx) error {
	m, i := tx.Bucket(bucketM()), tx.Bucket(bucketI())
	if m == nil || i == nil {
		return errForeign
	}
	v := m.Get(keyFormat())
	if len(v) != 4 || binary.BigEndian.Uint32(v) == 0 { // zeros are what a lost sector leaves, no format
		return errForeign
	}
	if n := binary.BigEndian.Uint32(v); n != dbFormat {
		return fmt.Errorf("%s has format %d, this program knows %d: %w", dbName, n, dbFormat, storage.ErrUnsupported)
	}
	return nil
}

// createDB makes an empty database beside the final name and renames it, as
// bbolt's own first write is not safe against a power cut.
func (s *Store) createDB() error {
	return s.o.hooks.replace(s.path(dbName), func(f *os.File) error {
		return rescue(func() error { return initDB(f.Name()) })
	})
}

func initDB(path string) error {
	db, err := bbolt.Open(path, fileMode, &bbolt.Options{Timeout: 1, FreelistType: bbolt.FreelistArrayType, NoStatistics: true})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(bucketI()); err != nil {
			return err
		}
		m, err := tx.CreateBucket(bucketM())
		if err != nil {
			return err
		}
		return m.Put(keyFormat(), binary.BigEndian.AppendUint32(nil, dbFormat))
	})
	return errors.Join(err, db.Close())
}

// close ends the turn's use of the file.
func (h *handle) close() error {
	if h.metas != nil {
		unmapFile(h.metas)
		h.metas = nil
	}
	if h.db == nil {
		return nil
	}
	if h.dead.Load() {
		h.abandon()
		return nil
	}
	err := rescue(h.db.Close)
	if errors.Is(err, errPanic) {
		h.dead.Store(true)
		h.abandon()
	}
	return err
}

// abandon drops bbolt's lock without calling bbolt, and leaks the map: nothing
// else is safe on a handle that panicked.
func (h *handle) abandon() {
	switch {
	case h.file == nil:
	case h.db == nil:
		_ = h.file.Close() // frees the lock too
	default:
		_ = unlockFile(h.file)
	}
	h.file = nil
}

// view runs f in a read transaction. A panic or fault in it is the damage of
// what was read; before f began, of the whole file.
func (h *handle) view(f func(*bbolt.Tx) error) error {
	if h.err != nil {
		return h.err
	}
	if h.dead.Load() {
		return errDead
	}
	if err := rescue(h.guard); err != nil {
		if errors.Is(err, errPanic) {
			h.dead.Store(true)
		}
		return err
	}
	var tx *bbolt.Tx
	err := rescue(func() (err error) {
		tx, err = h.db.Begin(false)
		return err
	})
	if err != nil {
		if errors.Is(err, errPanic) {
			h.dead.Store(true)
			releaseBegin(h.db)
		}
		return err
	}
	err = rescue(func() error { return f(tx) })
	return errors.Join(err, rescue(tx.Rollback))
}

// releaseBegin unlocks what bbolt's Begin of a read transaction holds when the
// meta page faults under it: metalock and mmaplock, which it does not release
// by defer. Without it every other reader of the handle would wait for ever.
// TestTruncateWhileOpenIsAnError fails if the fields change their names.
func releaseBegin(db *bbolt.DB) {
	v := reflect.ValueOf(db).Elem()
	meta, mmap := v.FieldByName("metalock"), v.FieldByName("mmaplock")
	if meta.IsValid() && meta.Type() == reflect.TypeFor[sync.Mutex]() && mmap.IsValid() && mmap.Type() == reflect.TypeFor[sync.RWMutex]() {
		(*sync.RWMutex)(mmap.Addr().UnsafePointer()).RUnlock()
		(*sync.Mutex)(meta.Addr().UnsafePointer()).Unlock()
	}
}

var errDead = fmt.Errorf("%s cannot be read: %w", dbName, storage.ErrDamaged)

// writable says why nothing can be written, or nil.
func (h *handle) writable() error {
	switch {
	case h.err != nil:
		return h.err
	case h.dead.Load():
		return errDead
	}
	return h.readOnly
}

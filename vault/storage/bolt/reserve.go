package bolt

import (
	"os"
	"sync/atomic"
	"time"
)

// The reserve is space that the store holds back for the day the disk is full,
// so that a revocation still finds room. It is given up once, and taken again
// when there is plenty.

const (
	reserveSize  = 4 << 20
	reserveAgain = 64 << 20 // free space at which the reserve is taken again
	reserveEvery = time.Second
)

type reserve struct {
	path    string
	missing atomic.Bool
	tried   time.Time // belongs to the committer
}

// look notes whether the reserve is there.
func (r *reserve) look() {
	info, err := os.Lstat(r.path)
	r.missing.Store(err != nil || !info.Mode().IsRegular() || info.Size() < reserveSize)
}

// release gives the reserve back to the disk.
func (r *reserve) release(s *Store) {
	if r.missing.Swap(true) {
		return
	}
	r.tried = time.Now()
	if err := os.Remove(r.path); err == nil {
		s.log.Warn("the disk is full; the reserve was given up for a change that closes access")
	}
}

// refill takes the reserve again if it is missing and space is plenty. Failing
// is no error: the store works without one.
func (r *reserve) refill(s *Store) {
	if !r.missing.Load() || time.Since(r.tried) < reserveEvery {
		return
	}
	r.tried = time.Now()
	if free, err := freeBytes(s.dir); err != nil || free < reserveAgain {
		return
	}
	if err := s.o.hooks.replace(r.path, fillReserve); err == nil {
		r.missing.Store(false)
	}
}

func fillReserve(f *os.File) error {
	if allocate(f, reserveSize) == nil {
		return nil
	}
	b := make([]byte, 64<<10)
	for n := 0; n < reserveSize; n += len(b) {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return nil
}

package bolt

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// noFollow is nothing on Windows: links are refused after the open.
const (
	noFollow = 0
	noBlock  = 0
)

// lockOffset is the one byte that is locked. Locks are mandatory, so it lies
// far behind the holder record, which must stay readable.
const lockOffset = 1 << 62

// openLock opens or creates a lock file. It is opened without delete sharing,
// so it cannot be deleted or replaced while it is in use.
func openLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return f, nil
}

func lockRange() *windows.Overlapped {
	return &windows.Overlapped{OffsetHigh: lockOffset >> 32}
}

// flock locks f for its handle. Without wait it returns false if another
// handle has it.
func flock(f *os.File, shared, wait bool) (bool, error) {
	var how uint32
	if !shared {
		how |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	if !wait {
		how |= windows.LOCKFILE_FAIL_IMMEDIATELY
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, lockRange())
	switch {
	case err == nil:
		return true, nil
	case !wait && (errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING)):
		return false, nil
	}
	return false, fmt.Errorf("locking %s: %w", f.Name(), err)
}

// funlock unlocks f, which always succeeds for a lock that is held.
func funlock(f *os.File) {
	_ = windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, lockRange())
}

// lockDir does nothing: a lock file that is in use cannot be deleted.
func lockDir(string) (*os.File, bool, error) { return nil, true, nil }

//go:build unix

package bolt

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// noFollow refuses a symbolic link as the last element of a path, noBlock
// does not wait for the other end of a pipe.
const (
	noFollow = unix.O_NOFOLLOW
	noBlock  = unix.O_NONBLOCK
)

// openLock opens or creates a lock file. It must be a regular file of ours
// with one name that nobody else may open.
func openLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := checkLock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return f, nil
}

// checkLock checks an open lock file. A file without a name was deleted in
// this instant, which the caller finds out by its path.
func checkLock(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !fi.Mode().IsRegular():
		return errors.New("not a regular file")
	case st.Nlink > 1:
		return errors.New("the file has another name")
	case int(st.Uid) != os.Geteuid():
		return errors.New("owned by another user")
	case fi.Mode().Perm()&0o077 != 0:
		return f.Chmod(0o600)
	}
	return nil
}

// flock locks f for its open file. Without wait it returns false if another
// open file has it.
func flock(f *os.File, shared, wait bool) (bool, error) {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		switch err := unix.Flock(int(f.Fd()), how); {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("locking %s: %w", f.Name(), err)
		}
	}
}

// funlock unlocks f, which always succeeds for a lock that is held.
func funlock(f *os.File) { _ = unix.Flock(int(f.Fd()), unix.LOCK_UN) }

// lockDir locks the directory, unless another open file has it. It returns no
// file and true where directories cannot be locked.
func lockDir(dir string) (*os.File, bool, error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, err
	}
	got, err := flock(d, false, false)
	if got {
		return d, true, nil
	}
	d.Close()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTSUP) {
		return nil, true, nil
	}
	return nil, false, err
}

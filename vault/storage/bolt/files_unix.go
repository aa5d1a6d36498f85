//go:build unix

package bolt

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/vault/storage"
)

const (
	// openFlags keep an open from following a symlink or waiting for a FIFO.
	openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	// enforceModes says that permission bits mean something here.
	enforceModes = true
	// sharedMap says that a large map costs address space only.
	sharedMap = true
)

func fullErrors() []syscall.Errno {
	return []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}
}

func checkOwner(info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to another user: %w", errPlace)
	}
	if st.Nlink != 1 {
		return fmt.Errorf("has %d names: %w", st.Nlink, errPlace)
	}
	return nil
}

func checkDirOwner(info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to another user: %w", storage.ErrUnsupported)
	}
	return nil
}

// syncDir makes names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// unlockFile drops the lock that bbolt holds on its file.
func unlockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_UN) }

// mapFile maps the first n bytes of f for reading, or returns nil.
func mapFile(f *os.File, n int) []byte {
	b, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil
	}
	return b
}

func unmapFile(b []byte) { _ = unix.Munmap(b) }

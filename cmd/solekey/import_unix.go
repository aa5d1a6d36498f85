//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// linkCount returns how many names a file has.
func linkCount(f *os.File) (uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 1, nil
	}
	return uint64(st.Nlink), nil
}

// keepOwner gives a new file the owner of the one it replaces.
func keepOwner(f *os.File, was fs.FileInfo) error {
	st, ok := was.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if mine, ok := now.Sys().(*syscall.Stat_t); ok && mine.Uid == st.Uid && mine.Gid == st.Gid {
		return nil
	}
	return f.Chown(int(st.Uid), int(st.Gid))
}

// swap gives the file tmp the name path. It returns the old file, which has
// no name any more.
func swap(tmp, path string, old *os.File, _ bool) (*os.File, error) {
	return old, os.Rename(tmp, path)
}

// discard ends the old file of a swap, which its owner closes.
func discard(*os.File) error { return nil }

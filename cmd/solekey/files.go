package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files of ours are made under another name, synced, and then given theirs, so
// that whoever looks finds a whole file or none, also after a crash. The
// change of names is synced too.

// writeFile replaces a file by one that its owner alone can read.
func writeFile(path string, b []byte) error {
	err := throughTemp(path, b, func(tmp string) error { return os.Rename(tmp, path) })
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
}

// writeNew makes a file that its owner alone can read. It returns an error
// that is [fs.ErrExist] if there is one of this name.
func writeNew(path string, b []byte) error {
	return throughTemp(path, b, func(tmp string) error {
		err := os.Link(tmp, path)
		if err == nil {
			return os.Remove(tmp)
		}
		// Links are missing on some file systems; there the last look is as
		// good as it gets.
		if _, taken := os.Lstat(path); !errors.Is(taken, fs.ErrNotExist) {
			return fs.ErrExist
		}
		return os.Rename(tmp, path)
	})
}

// throughTemp writes a file beside path, which name then gives its name.
func throughTemp(path string, b []byte, name func(tmp string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = name(f.Name())
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncDirOf(path)
}

// syncDirOf makes a change of names beside path durable, where a directory can
// be synced.
func syncDirOf(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil && !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) {
		return errors.Join(err, d.Close())
	}
	return d.Close()
}

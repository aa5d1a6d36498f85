package bolt

import (
	"errors"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// hooks let the crash and fault harnesses see every change of a file before it
// is made, and refuse it. A program has none: only this package's tests can
// set them. bbolt writes vault.db itself; opened is where a harness gets hold
// of it.
type hooks struct {
	change func(change) error // an error is returned in place of making the change; nil: no harness
	opened func(*bbolt.DB)    // after each open of vault.db; nil: no harness
}

// change is one change of a file or name of the store, about to be made.
type change struct {
	kind changeKind
	path string
	off  int64  // of a write; the size of a truncation
	data []byte // of a write
}

type changeKind uint8

const (
	changeWrite changeKind = iota + 1
	changeTruncate
	changeSync
	changeRename // the file with newSuffix takes the place of path
	changeSyncDir
)

func (h *hooks) tell(c change) error {
	if h.change == nil {
		return nil
	}
	return h.change(c)
}

// file is an open file of the store of which every change is told.
type file struct {
	*os.File
	hooks *hooks
}

// WriteAt writes b at off.
func (f *file) WriteAt(b []byte, off int64) (int, error) {
	if err := f.hooks.tell(change{kind: changeWrite, path: f.Name(), off: off, data: b}); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

// Truncate cuts or extends the file.
func (f *file) Truncate(size int64) error {
	if err := f.hooks.tell(change{kind: changeTruncate, path: f.Name(), off: size}); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync makes the whole file durable.
func (f *file) Sync() error {
	if err := f.hooks.tell(change{kind: changeSync, path: f.Name()}); err != nil {
		return err
	}
	return f.File.Sync()
}

// datasync makes written data and the file's size durable.
func (f *file) datasync() error {
	if err := f.hooks.tell(change{kind: changeSync, path: f.Name()}); err != nil {
		return err
	}
	return datasync(f.File)
}

// open opens a file of the store as openChecked does.
func (h *hooks) open(path string, flag int) (*file, error) {
	f, err := openChecked(path, flag)
	if err != nil {
		return nil, err
	}
	return &file{File: f, hooks: h}, nil
}

// replace makes path with the given content by a rename, so that a crash
// leaves the file whole or absent. write gets a file that did not exist.
func (h *hooks) replace(path string, write func(*os.File) error) error {
	tmp := path + newSuffix
	if err := removeIfThere(tmp); err != nil {
		return err
	}
	f, err := h.open(tmp, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	err = write(f.File)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := h.tell(change{kind: changeRename, path: path}); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, path)
}

// syncDir makes names in dir durable.
func (h *hooks) syncDir(dir string) error {
	if err := h.tell(change{kind: changeSyncDir, path: filepath.Join(dir, ".")}); err != nil {
		return err
	}
	return syncDir(dir)
}

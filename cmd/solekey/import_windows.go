package main

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// linkCount returns how many names a file has.
func linkCount(f *os.File) (uint64, error) {
	var info syscall.ByHandleFileInformation
	if err := syscall.GetFileInformationByHandle(syscall.Handle(f.Fd()), &info); err != nil {
		return 0, err
	}
	return uint64(info.NumberOfLinks), nil
}

// keepOwner leaves the owner to the directory, as other programs do here.
func keepOwner(*os.File, fs.FileInfo) error { return nil }

// swap gives the file tmp the name path. An open file cannot be replaced
// here, so the old one is closed; if it is still needed it is put aside first
// and opened again.
func swap(tmp, path string, old *os.File, keep bool) (*os.File, error) {
	if err := old.Close(); err != nil {
		return nil, err
	}
	if !keep {
		return nil, os.Rename(tmp, path)
	}
	aside := tmp + ".old"
	if err := os.Rename(path, aside); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, errors.Join(err, os.Rename(aside, path))
	}
	return os.OpenFile(aside, os.O_RDWR, 0)
}

// discard deletes the old file of a swap.
func discard(old *os.File) error {
	if old == nil {
		return nil
	}
	return errors.Join(old.Close(), os.Remove(old.Name()))
}

package keyring

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ReadPrivate returns the content of a file that belongs to this user and
// that nobody else may open. It refuses anything but a regular file, and more
// than limit bytes. The error names the file and what to do, never content.
func ReadPrivate(path string, limit int64) ([]byte, error) {
	return readFile(path, limit, checkPrivate)
}

// ReadOwn returns the content of a file that belongs to this user and that
// nobody else can change, though others may read it. It refuses anything but
// a regular file, and more than limit bytes.
func ReadOwn(path string, limit int64) ([]byte, error) {
	return readFile(path, limit, checkOwn)
}

func readFile(path string, limit int64, check func(path string, fi fs.FileInfo) error) ([]byte, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := check(path, fi); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes: %w", path, limit, ErrTooLarge)
	}
	if err != nil {
		clear(b)
		return nil, err
	}
	return b, nil
}

// openRegular opens a regular file and follows no symbolic link at the end of
// path. It does not wait for the other end of a pipe.
func openRegular(path string) (*os.File, error) {
	before, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if before.Mode()&fs.ModeSymlink != 0 {
		return nil, fmt.Errorf("%s is a symbolic link: name the file itself: %w", path, ErrNotPrivate)
	}
	if !before.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", path, ErrNotPrivate)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = fmt.Errorf("%s was replaced while it was opened: %w", path, ErrNotPrivate)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// writePrivate puts a new file in the place of path: it is there completely
// or not at all, also after a power cut.
func writePrivate(path string, b []byte) error {
	dir := filepath.Dir(path)
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// makeDir makes dir, and refuses one that others may change.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return checkDir(dir, fi)
}

// deletePrivate removes a file, durably.
func deletePrivate(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/solekey/solekey/vault/storage"
)

// Rules for files: a file of the store is regular, has one name, belongs to
// the effective user and is closed to everybody else. It is opened without
// following a symlink or waiting for a device, and what was opened is checked
// again on the descriptor, so that a swap between look and open shows.

const (
	dbName      = "vault.db"
	cellsName   = "vault.cells"
	auditName   = "audit.jsonl"
	reserveName = "reserve"
	newSuffix   = ".new"

	dirMode  = 0o700
	fileMode = 0o600
)

// openChecked opens a file of the store for reading and writing. flag may add
// os.O_CREATE|os.O_EXCL. A mode that lets others in is narrowed; one that
// keeps the owner out is left as it is and refused.
func openChecked(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|os.O_RDWR|openFlags, fileMode)
	if err != nil {
		return nil, err
	}
	if err := checkFile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkInfo(info); err != nil {
		return fmt.Errorf("%s %w", info.Name(), err)
	}
	if info.Mode().Perm()&0o077 != 0 && enforceModes {
		return f.Chmod(fileMode)
	}
	return nil
}

// checkInfo says what is wrong with a file of the store. Its errors continue a
// sentence that starts with the file's name.
func checkInfo(info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("is not a regular file: %w", errPlace)
	}
	if enforceModes && info.Mode().Perm()&fileMode != fileMode {
		return fmt.Errorf("is read-only (mode %04o): %w", info.Mode().Perm(), errReadOnly)
	}
	return checkOwner(info)
}

// errPlace reports a file that is not what the store made; errReadOnly one
// whose mode forbids writing.
var (
	errPlace    = errors.New("unexpected kind of file")
	errReadOnly = errors.New("file is read-only")
)

// checkDir refuses a directory that is not the owner's and closes it to
// others. The returned warning says what it changed.
func checkDir(dir string) (warning string, err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is not a directory: %w", dir, storage.ErrUnsupported)
	}
	if err := checkDirOwner(info); err != nil {
		return "", fmt.Errorf("%s %w", dir, err)
	}
	if perm := info.Mode().Perm(); enforceModes && perm != dirMode {
		if err := os.Chmod(dir, dirMode); err != nil {
			return "", fmt.Errorf("closing the data directory to others: %w", err)
		}
		return fmt.Sprintf("directory mode was %04o, now %04o", perm, dirMode), nil
	}
	return "", nil
}

// isFull reports an error of a disk, quota or file size limit that is used up.
// bbolt formats some system errors as text, hence the second look.
func isFull(err error) bool {
	for _, no := range fullErrors() {
		if errors.Is(err, no) || strings.HasSuffix(err.Error(), ": "+no.Error()) {
			return true
		}
	}
	return false
}

// isIO reports an error of the medium itself.
func isIO(err error) bool {
	return errors.Is(err, syscall.EIO) || strings.HasSuffix(err.Error(), ": "+syscall.EIO.Error())
}

// isForbidden reports that the system does not let us write.
func isForbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, errReadOnly)
}

// faultError gives a system error of a write its sentinel: full or
// unavailable. The error says what was being done.
func faultError(doing string, err error) error {
	if isFull(err) {
		return fmt.Errorf("%s: %w: %w", doing, err, storage.ErrFull)
	}
	return fmt.Errorf("%s: %w: %w", doing, err, storage.ErrUnavailable)
}

// isNoFile reports that a path does not lead to a file: it is absent, a
// directory, a device, or a symlink where none may be.
func isNoFile(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO)
}

// removeIfThere removes a file that may not exist.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

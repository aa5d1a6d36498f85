//go:build unix && !linux && !darwin

package bolt

import (
	"errors"
	"os"

	"github.com/solekey/solekey/vault/storage"
)

// datasync makes written data durable.
func datasync(f *os.File) error { return f.Sync() }

// allocate reports that space cannot be reserved without writing it.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }

// freeBytes reports that free space is not known here.
func freeBytes(string) (int64, error) { return 0, errors.ErrUnsupported }

// place promises little, as the file system's kind is not known here.
func place(string) (name string, class storage.Class, warning string, err error) {
	return "unknown", storage.BestEffort, "", nil
}

package bolt

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/vault/storage"
)

// datasync makes written data durable. Sync asks the drive itself
// (F_FULLFSYNC), which fdatasync does not do here.
func datasync(f *os.File) error { return f.Sync() }

// allocate reports that space cannot be reserved without writing it.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }

// freeBytes returns the space that the user may still fill.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

// place says on which file system dir lies and what that means.
func place(dir string) (name string, class storage.Class, warning string, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", 0, "", err
	}
	name = unix.ByteSliceToString(st.Fstypename[:])
	switch name {
	case "nfs", "smbfs", "webdav", "afpfs":
		return name, 0, "", storage.ErrUnsupported
	case "hfs":
		return name, storage.InPlace, "", nil
	}
	return name, storage.BestEffort, "", nil
}

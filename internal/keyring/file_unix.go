//go:build unix

package keyring

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

const openFlags = syscall.O_NOFOLLOW | syscall.O_NONBLOCK

func owner(fi fs.FileInfo) int {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// checkPrivate refuses a file of another user, or one that others may open.
func checkPrivate(path string, fi fs.FileInfo) error {
	if owner(fi) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: copy it to a file of your own: %w", path, ErrNotPrivate)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s can be opened by others (mode %04o): chmod 600 %[1]s: %[3]w", path, fi.Mode().Perm(), ErrNotPrivate)
	}
	return nil
}

// checkCredential accepts what systemd makes: files of root or of the unit's
// user, which others reach, if at all, by an access control list.
func checkCredential(path string, fi fs.FileInfo) error {
	if o := owner(fi); o != 0 && o != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: %w", path, ErrNotPrivate)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%s can be opened by everybody (mode %04o): make it 0400, or 0440 for its group: %w", path, fi.Mode().Perm(), ErrNotPrivate)
	}
	return nil
}

// checkOwn refuses a file of another user, or one that others may change.
func checkOwn(path string, fi fs.FileInfo) error {
	if owner(fi) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: copy it to a file of your own: %w", path, ErrNotPrivate)
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be changed by others (mode %04o): chmod 600 %[1]s: %[3]w", path, fi.Mode().Perm(), ErrNotPrivate)
	}
	return nil
}

// checkDir refuses a directory in which others may replace files.
func checkDir(path string, fi fs.FileInfo) error {
	if owner(fi) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: %w", path, ErrNotPrivate)
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s can be changed by others (mode %04o): chmod 700 %[1]s: %[3]w", path, fi.Mode().Perm(), ErrNotPrivate)
	}
	return nil
}

// syncDir makes names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

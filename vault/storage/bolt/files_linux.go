package bolt

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/vault/storage"
)

// Magic numbers of file systems that golang.org/x/sys/unix does not name.
const (
	magicCIFS = 0xFF534D42
	magicZFS  = 0x2FC12FC1
	magicBcac = 0xCA451A4E
	magicNTFS = 0x5346544E
	magicF2FS = 0xF2F52010
)

// datasync makes written data and the file's size durable.
func datasync(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// allocate reserves size bytes on the disk, or reports that it cannot.
func allocate(f *os.File, size int64) error { return unix.Fallocate(int(f.Fd()), 0, 0, size) }

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
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC:
		return "nfs", 0, "", storage.ErrUnsupported
	case unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, magicCIFS:
		return "smb", 0, "", storage.ErrUnsupported
	case unix.V9FS_MAGIC:
		return "9p", 0, "", storage.ErrUnsupported
	case unix.CEPH_SUPER_MAGIC:
		return "ceph", 0, "", storage.ErrUnsupported
	case unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC:
		return "afs", 0, "", storage.ErrUnsupported
	case unix.FUSE_SUPER_MAGIC:
		return "fuse", storage.BestEffort, "fuse: every process must be on the same side of the mount", nil
	case unix.EXT4_SUPER_MAGIC:
		if journalsData(dir) {
			return "ext4 data=journal", storage.BestEffort, "", nil
		}
		return "ext4", storage.InPlace, "", nil
	case unix.XFS_SUPER_MAGIC:
		return "xfs", storage.InPlace, "", nil
	case magicNTFS:
		return "ntfs", storage.InPlace, "", nil
	}
	return otherPlace(uint32(st.Type)), storage.BestEffort, "", nil
}

func otherPlace(magic uint32) string {
	switch magic {
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case magicZFS:
		return "zfs"
	case magicBcac:
		return "bcachefs"
	case magicF2FS:
		return "f2fs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlayfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	}
	return fmt.Sprintf("type %#x", magic)
}

// journalsData reports whether the mount of dir writes file data through the
// journal, where an overwritten block survives for a while. What cannot be
// read counts as no.
func journalsData(dir string) bool {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return false
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	dev := fmt.Sprintf(" %d:%d ", unix.Major(st.Dev), unix.Minor(st.Dev))
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), dev) && strings.Contains(s.Text(), "data=journal") {
			return true
		}
	}
	return false
}

package bolt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/windows"

	"github.com/solekey/solekey/vault/storage"
)

const (
	openFlags    = 0
	enforceModes = false // access is governed by the directory's ACL
	sharedMap    = false // a map makes the file as large as itself
)

func fullErrors() []syscall.Errno {
	return []syscall.Errno{windows.ERROR_DISK_FULL, windows.ERROR_HANDLE_DISK_FULL, windows.ERROR_DISK_QUOTA_EXCEEDED}
}

func checkOwner(fs.FileInfo) error { return nil }

func checkDirOwner(fs.FileInfo) error { return nil }

// syncDir does nothing: NTFS journals names.
func syncDir(string) error { return nil }

// datasync makes written data durable.
func datasync(f *os.File) error { return f.Sync() }

// allocate reports that space cannot be reserved without writing it.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }

// unlockFile drops the lock that bbolt holds on its file.
func unlockFile(f *os.File) error {
	var m1 uint32 = 1<<32 - 1
	return windows.UnlockFileEx(windows.Handle(f.Fd()), 0, 1, 0, &windows.Overlapped{Offset: m1, OffsetHigh: m1})
}

// freeBytes returns the space that the user may still fill.
func freeBytes(dir string) (int64, error) {
	p, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free, total, all uint64
	if err := windows.GetDiskFreeSpaceEx(p, &free, &total, &all); err != nil {
		return 0, err
	}
	return int64(free), nil
}

// place says on which kind of volume dir lies and what that means.
func place(dir string) (name string, class storage.Class, warning string, err error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", 0, "", err
	}
	root, err := windows.UTF16PtrFromString(filepath.VolumeName(abs) + `\`)
	if err != nil {
		return "", 0, "", err
	}
	if windows.GetDriveType(root) == windows.DRIVE_REMOTE {
		return "remote drive", 0, "", storage.ErrUnsupported
	}
	var fsName [64]uint16
	if err := windows.GetVolumeInformation(root, nil, 0, nil, nil, nil, &fsName[0], uint32(len(fsName))); err != nil {
		return "unknown", storage.BestEffort, "", nil
	}
	name = windows.UTF16ToString(fsName[:])
	if name == "NTFS" {
		return name, storage.InPlace, "", nil
	}
	return name, storage.BestEffort, "", nil
}

// mapFile maps nothing: a mapped file cannot be cut here.
func mapFile(*os.File, int) []byte { return nil }

func unmapFile([]byte) {}

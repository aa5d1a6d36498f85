package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// lockFile locks f for this process, without waiting. The system unlocks it
// when the process ends, however it does.
func lockFile(f *os.File) error {
	how := uint32(windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY)
	return windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, new(windows.Overlapped))
}

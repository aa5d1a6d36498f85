//go:build unix

package main

import "golang.org/x/sys/unix"

// maxFiles returns how many descriptors this process may have.
func maxFiles() (int, bool) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, false
	}
	return int(min(l.Cur, 1<<30)), true
}

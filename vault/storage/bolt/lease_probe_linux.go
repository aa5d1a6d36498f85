package bolt

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// probe reports that nobody has f locked. Neither call blocks, so both are
// raw: the runtime takes no processor away from the tick in between, which
// among spinning goroutines it would get back only tens of milliseconds later.
func probe(f *os.File) (bool, error) {
	fd := f.Fd()
	switch _, _, e := unix.RawSyscall(unix.SYS_FLOCK, fd, unix.LOCK_SH|unix.LOCK_NB, 0); e {
	case 0:
		unix.RawSyscall(unix.SYS_FLOCK, fd, unix.LOCK_UN, 0)
		return true, nil
	case unix.EWOULDBLOCK:
		return false, nil
	default:
		return false, fmt.Errorf("locking %s: %w", f.Name(), e)
	}
}

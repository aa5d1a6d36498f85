package harden

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// wipeBlock zeroes every entry of names in the initial environment block and
// reads the block again to see that they are gone.
func wipeBlock(names []string) bool {
	start, size, err := envBlock()
	if err != nil {
		return false
	}
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer mem.Close()
	block := make([]byte, size)
	defer clear(block)
	if _, err := mem.ReadAt(block, start); err != nil {
		return false
	}
	for _, e := range entries(block, names) {
		if _, err := mem.WriteAt(make([]byte, e.size), start+int64(e.at)); err != nil {
			return false
		}
	}
	if _, err := mem.ReadAt(block, start); err != nil {
		return false
	}
	return len(entries(block, names)) == 0
}

// envBlock returns where the initial environment block lies: env_start and
// env_end are fields 50 and 51 of proc_pid_stat(5), and the first two contain
// the process's name, which may contain anything.
func envBlock() (start int64, size int, err error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0, err
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const first = 3 // the number of f[0]
	if len(f) <= 51-first {
		return 0, 0, errors.New("/proc/self/stat is too short")
	}
	start, err1 := strconv.ParseInt(f[50-first], 10, 64)
	end, err2 := strconv.ParseInt(f[51-first], 10, 64)
	if err1 != nil || err2 != nil || start <= 0 || end < start || end-start > 64<<20 {
		return 0, 0, errors.New("/proc/self/stat names no environment block")
	}
	return start, int(end - start), nil
}

// entry is the place of one NAME=VALUE in the block.
type entry struct{ at, size int }

// entries finds all entries of names, also those that an earlier one hides.
func entries(block []byte, names []string) []entry {
	var found []entry
	for at := 0; at < len(block); {
		size := bytes.IndexByte(block[at:], 0)
		if size < 0 {
			size = len(block) - at
		}
		for _, name := range names {
			if e := block[at : at+size]; len(e) > len(name) && e[len(name)] == '=' && string(e[:len(name)]) == name {
				found = append(found, entry{at, size})
			}
		}
		at += size + 1
	}
	return found
}

func protect() error {
	return errors.Join(
		unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0),
		unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}),
	)
}

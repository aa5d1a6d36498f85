//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// memoryOf counts how often each needle stands in the memory of a process,
// seen from outside.
func memoryOf(pid int, needles ...[]byte) ([]int, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	counts := make([]int, len(needles))
	longest := 0
	for _, n := range needles {
		longest = max(longest, len(n))
	}
	buf := make([]byte, 1<<20+longest)
	for s := bufio.NewScanner(maps); s.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(s.Text(), "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(s.Text(), "[v") {
			continue
		}
		for at := from; at < to; at += 1 << 20 {
			n, err := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			if n == 0 && err != nil {
				break // a page that is reserved only
			}
			for i, needle := range needles {
				counts[i] += bytes.Count(buf[:n], needle)
				if n > 1<<20 { // what lies whole in the overlap is counted with the next piece
					counts[i] -= bytes.Count(buf[1<<20:n], needle)
				}
			}
		}
	}
	return counts, nil
}

// How many copies of a value a server may hold: for each reading until the
// garbage is collected, 6 were measured, and of all readings after many other
// calls. Builds with GOEXPERIMENT=runtimesecret erase them when they are
// collected, and none was left; others leave what is not used again, 1 to 8.
const (
	maxFresh    = 12
	maxRemnants = 40
	maxErased   = 1
)

// erases reports whether this program erases what it collects.
func erases() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Settings, func(s debug.BuildSetting) bool {
		return s.Key == "GOEXPERIMENT" && strings.Contains(s.Value, "runtimesecret")
	})
}

// TestFewRemnantsOfValuesInMemory reads the memory of a server from outside,
// as somebody does who has taken the host: after many readings of a value, and
// many of another one, which collect the garbage of the first.
func TestFewRemnantsOfValuesInMemory(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.must("identity", "create", "bot")
	first, second := "CANARY-remnant-of-the-first-7c11", "CANARY-remnant-of-the-other-90af"
	w.put("bot", "FIRST", first)
	w.put("bot", "OTHER", second)
	s := w.serve("--profile", "bot")
	count := func() []int {
		t.Helper()
		n, err := memoryOf(s.cmd.Process.Pid, []byte(first), []byte(second), []byte("get_secret"))
		if errors.Is(err, fs.ErrPermission) {
			t.Skip("reading the memory of a process that forbids it takes CAP_SYS_PTRACE")
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const n = 100
	for range n {
		s.get("FIRST").wants(t, "get_secret", first, "")
	}
	during := count()
	for range 10 * n {
		s.get("OTHER").wants(t, "get_secret", second, "")
	}
	after := count()
	limit := maxRemnants
	if erases() {
		limit = maxErased
	}
	t.Logf("copies of the first value after %d readings: %d; after %d of another one: %d, at most %d; of that one: %d", n, during[0], 10*n, after[0], limit, after[1])
	if during[0] == 0 && after[1] == 0 || after[2] == 0 {
		t.Errorf("control: nothing is found in memory: %v, %v", during, after)
	}
	if during[0] > n*maxFresh || after[0] > limit {
		t.Errorf("%d copies of a value after %d readings, %d of them later, want at most %d and %d", during[0], n, after[0], n*maxFresh, limit)
	}
}

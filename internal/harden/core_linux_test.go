package harden_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// coreOf makes a child with a value in its memory, gives it the orders, lets
// it abort in the way that asks the kernel for a core, and returns whether
// there was one, and what it left on disk.
func coreOf(t *testing.T, orders ...string) (dumped bool, core []byte) {
	t.Helper()
	dir := t.TempDir()
	c := startIn(t, dir, "GOTRACEBACK=crash")
	if got := c.do("hold " + canary[:8]); got != "<nil>" {
		t.Fatal(got)
	}
	for _, o := range orders {
		if got := c.do(o); got != "<nil>" {
			t.Skipf("order %s = %s", o, got)
		}
	}
	p, err := os.FindProcess(c.pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGABRT); err != nil {
		t.Fatal(err)
	}
	end, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	status := end.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != unix.SIGABRT {
		t.Fatalf("the child ends with %v, want SIGABRT", end)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if f.Name() == "said" {
			if bytes.Contains(b, heldValue(canary[:8])) {
				t.Error("what the runtime says at the end holds the value")
			}
			continue
		}
		core = append(core, b...)
	}
	return status.CoreDump(), core
}

// heldValue is what a child makes of "hold " and the beginning of the canary:
// no text of this program holds it whole.
func heldValue(begins string) []byte {
	return []byte(begins + strings.Repeat("-held", 3) + strconv.Itoa(7*11*13))
}

// TestKernelWritesNoCore asks the kernel for a core of a process, as the Go
// runtime does with GOTRACEBACK=crash. Each of the two measures is enough: the
// limit counts where cores are files, and only the flag counts where
// kernel.core_pattern hands them to a program.
func TestKernelWritesNoCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Skip(err)
	}
	dumped, core := coreOf(t, "limit up")
	if !dumped {
		t.Skipf("control: the kernel writes no core of anybody here; core_pattern is %q", bytes.TrimSpace(pattern))
	}
	if !bytes.ContainsAny(pattern[:1], "|/") && !bytes.Contains(core, heldValue(canary[:8])) {
		t.Errorf("control: the core of %d bytes of a process that is not protected does not hold its value", len(core))
	}
	for what, orders := range map[string][]string{
		"as solekey starts":    {"limit up", "protect"},
		"with the flag alone":  {"limit up", "undump"},
		"with the limit alone": {"limit down"},
	} {
		t.Run(what, func(t *testing.T) {
			if what == "with the limit alone" && pattern[0] == '|' {
				t.Skip("cores go to a program, for which the limit does not count")
			}
			if dumped, core := coreOf(t, orders...); dumped || len(core) > 0 {
				t.Errorf("the kernel wrote a core of %d bytes, dumped = %v", len(core), dumped)
			}
		})
	}
}

// limitCores sets the limit of cores; raising one that was lowered takes root.
func limitCores(up bool) error {
	var l unix.Rlimit
	if !up {
		return unix.Setrlimit(unix.RLIMIT_CORE, &l)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err == nil {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &l); err != nil {
		return err
	}
	if l.Max == 0 {
		return fmt.Errorf("the hard limit of cores is 0")
	}
	l.Cur = l.Max
	return unix.Setrlimit(unix.RLIMIT_CORE, &l)
}

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The promise: neither a core nor another process of the same user shows what
// a server holds. The control of each test is a program without protection, in
// the same place and by the same means, whose value is found.

// stage is a world with two more programs, run by one user. It has a value and
// its key.
type stage struct {
	*world
	value, key string
	dropped    bool // its programs run as nobody
}

const stageValue = "CANARY-of-the-stage-4b1d9e"

// newStage makes a stage. With drop its programs run as a user without
// privileges if the test runs as root.
func newStage(t *testing.T, drop bool) *stage {
	t.Helper()
	w := newBareWorld(t)
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"solekey": w.bin, "solekey-bare": own, "solekey-thief": own} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(w.root, "bin", name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := &stage{world: w, value: stageValue}
	if drop && os.Geteuid() == 0 {
		s.drop()
	}
	w.bin = s.program("solekey")
	if out := w.run("version"); out.code != 0 {
		t.Skipf("a user without privileges cannot run programs below %s: %v", w.root, out)
	}
	w.must("init", "--root", "file", "--no-recovery")
	w.must("identity", "create", "bot")
	w.put("bot", "TOKEN", s.value)
	s.key = w.keyOf("bot")
	return s
}

// program is the path of a program of the stage.
func (s *stage) program(name string) string {
	if s.dropped {
		return filepath.Join(s.root, "as", name)
	}
	return filepath.Join(s.root, "bin", name)
}

// drop gives the stage to the user nobody, under whom every program starts.
func (s *stage) drop() {
	s.t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		s.t.Skip("running as another user takes setpriv")
	}
	const nobody = 65534
	s.dropped = true
	as := filepath.Join(s.root, "as")
	err = errors.Join(os.Chmod(filepath.Dir(s.root), 0o711), os.Mkdir(as, 0o755))
	for _, name := range []string{"solekey", "solekey-bare", "solekey-thief"} {
		text := fmt.Sprintf("#!/bin/sh\nexec %s --reuid %d --regid %d --clear-groups --no-new-privs %s \"$@\"\n", setpriv, nobody, nobody, filepath.Join(s.root, "bin", name))
		err = errors.Join(err, os.WriteFile(filepath.Join(as, name), []byte(text), 0o755))
	}
	err = errors.Join(err, filepath.WalkDir(s.root, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, nobody, nobody))
	}))
	if err != nil {
		s.t.Fatal(err)
	}
}

// actors are the programs that the tests play besides solekey.
func actors() map[string]func() {
	return map[string]func(){"solekey-bare": bareMain, "solekey-thief": thiefMain}
}

// bareMain is the program without protection: it holds the line that it reads.
func bareMain() {
	// Where Yama rules, only an ancestor or who is named may look.
	_ = unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
	line, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	if err != nil {
		os.Exit(1)
	}
	fmt.Println("holding")
	_, _ = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(line)
}

// bare starts the program without protection.
func (s *stage) bare(set setting) *exec.Cmd {
	s.t.Helper()
	cmd := s.other("solekey-bare").command(s.t.Context(), set)
	cmd.Stdin = nil
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	fmt.Fprintln(in, s.value)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "holding\n" {
		s.t.Fatalf("the program without protection says %q, %v", line, err)
	}
	return cmd
}

// other is the world with another program.
func (s *stage) other(name string) *world {
	w := *s.world
	w.bin = s.program(name)
	return &w
}

// servers starts what holds values, has each give one out, and calls f with
// its process and what ends it.
func (s *stage) servers(set setting, f func(name string, pid int, end func() (state *os.ProcessState, said string))) {
	s.t.Helper()
	mcp := s.serveWith(set, "--profile", "bot")
	mcp.get("TOKEN").wants(s.t, "get_secret", s.value, "")
	f("mcp", mcp.cmd.Process.Pid, func() (*os.ProcessState, string) {
		mcp.end()
		return mcp.cmd.ProcessState, mcp.stderr.String()
	})
	host := s.host(set, "--listen", "127.0.0.1:0")
	a := newAgent(host, s.key)
	defer a.close()
	if r, err := a.legacy(s.t.Context(), "TOKEN"); err != nil || r.text("value") != s.value {
		s.t.Fatalf("get_secret over HTTP: %s, %v", r.said(), err)
	}
	f("serve", host.cmd.Process.Pid, func() (*os.ProcessState, string) {
		host.end()
		return host.cmd.ProcessState, host.text()
	})
}

// fault makes a process fault where none of its handlers sees it, so that the
// kernel ends it and decides about a core. It takes the right to trace it.
func fault(pid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := syscall.PtraceAttach(pid); err != nil {
		return err
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	var regs syscall.PtraceRegs
	err := syscall.PtraceGetRegs(pid, &regs)
	if err == nil {
		regs.SetPC(0)
		err = syscall.PtraceSetRegs(pid, &regs)
	}
	all := ^uint64(0) // a fault whose signal is blocked is not handled
	if _, _, no := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_SETSIGMASK, uintptr(pid), unsafe.Sizeof(all), uintptr(unsafe.Pointer(&all)), 0, 0); no != 0 {
		err = errors.Join(err, no)
	}
	return errors.Join(err, syscall.PtraceDetach(pid))
}

// dumped reports whether the kernel says that it wrote a core.
func dumped(p *os.ProcessState) bool { return p.Sys().(syscall.WaitStatus).CoreDump() }

// TestNoCoreHoldsAValue ends servers in the ways that leave cores, where cores
// are allowed, and looks at the word of the kernel, every file, and stderr.
func TestNoCoreHoldsAValue(t *testing.T) {
	t.Parallel()
	s := newStage(t, false)
	loud := setting{shell: "ulimit -c unlimited", env: []string{"GOTRACEBACK=system"}}
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")

	cores := filepath.Join(s.root, "cores")
	if err := os.Mkdir(cores, 0o755); err != nil {
		t.Fatal(err)
	}
	c := s.bare(setting{shell: loud.shell, env: []string{"GOTRACEBACK=crash"}, dir: cores})
	if err := c.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if !dumped(c.ProcessState) {
		t.Skipf("control: the kernel writes no core of anybody here; core_pattern is %q", bytes.TrimSpace(pattern))
	}
	if !bytes.ContainsAny(pattern[:1], "|/") && !s.holds(cores) {
		t.Errorf("control: no core of a program that holds a value has it")
	}
	if err := os.RemoveAll(cores); err != nil {
		t.Fatal(err)
	}
	c = s.bare(setting{shell: loud.shell, dir: t.TempDir()})
	switch err := fault(c.Process.Pid); {
	case errors.Is(err, fs.ErrPermission):
		t.Logf("no process can be made to fault from outside: %v", err)
	case err != nil:
		t.Fatal(err)
	default:
		if _ = c.Wait(); !dumped(c.ProcessState) {
			t.Errorf("control: a program that is not protected and faults leaves no core: %v", c.ProcessState)
		}
	}

	ends := map[string]func(int) error{"a fault": fault}
	for _, sig := range []syscall.Signal{syscall.SIGABRT, syscall.SIGQUIT, syscall.SIGSEGV, syscall.SIGSYS} {
		ends[sig.String()] = func(pid int) error { return syscall.Kill(pid, sig) }
	}
	for _, how := range sorted(ends) {
		s.servers(loud, func(name string, pid int, end func() (*os.ProcessState, string)) {
			switch n, err := memoryOf(pid, []byte(s.value)); {
			case err == nil && n[0] == 0:
				t.Errorf("control: %s holds no value that a core could show", name)
			case err != nil && !errors.Is(err, fs.ErrPermission):
				t.Error(err)
			}
			if err := ends[how](pid); errors.Is(err, fs.ErrPermission) {
				t.Logf("%s of %s is refused: %v", how, name, err)
				_ = syscall.Kill(pid, syscall.SIGTERM)
			} else if err != nil {
				t.Fatal(err)
			}
			state, said := end()
			if dumped(state) {
				t.Errorf("%s ended by %s leaves a core: %v", name, how, state)
			}
			if how == "a fault" && !state.Success() {
				t.Logf("%s ended by %s: %v", name, how, state)
			}
			if s.has([]byte(said)) {
				t.Errorf("%s ended by %s says what it holds", name, how)
			}
			if s.holds(s.root) {
				t.Errorf("%s ended by %s leaves a file that holds a value or a key", name, how)
			}
		})
	}
	loud.env = []string{"GOTRACEBACK=crash"} // would have the runtime ask for a core
	if out := s.start(loud, "get", "TOKEN", "--profile", "bot"); out.code != 2 || s.has([]byte(out.stdout+out.stderr)) {
		t.Errorf("get with GOTRACEBACK=crash: exit code %d, want 2", out.code)
	}
}

// has reports whether the value or the key is in b, in any form.
func (s *stage) has(b []byte) bool {
	return slices.ContainsFunc(slices.Concat(disguises([]byte(s.value)), disguises([]byte(s.key))), func(f []byte) bool { return bytes.Contains(b, f) })
}

// holds reports whether a file below dir has the value or the key, but for the
// file where the key rests.
func (s *stage) holds(dir string) bool {
	s.t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == s.keyFile("bot") || filepath.Dir(path) == filepath.Join(s.root, "bin") {
			return err
		}
		b, err := os.ReadFile(path)
		if s.has(b) {
			s.t.Logf("%s holds it", path)
			found = true
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	return found
}

// thiefMain is another process of the user: it reads process PID in every way
// it knows, for the text on stdin, and prints what came of each.
func thiefMain() {
	pid, _ := strconv.Atoi(os.Args[1])
	needle, _ := bufio.NewReader(os.Stdin).ReadBytes('\n')
	result := map[string]string{}
	put := func(way string, err error) {
		switch {
		case err == nil:
			result[way] = "open"
		case errors.Is(err, fs.ErrPermission):
			result[way] = "refused"
		default:
			result[way] = err.Error()
		}
	}
	n, err := memoryOf(pid, bytes.TrimSuffix(needle, []byte("\n")))
	put("mem", err)
	if err == nil && n[0] > 0 {
		result["mem"] = "found"
	}
	for _, name := range []string{"environ", "maps", "mem"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err == nil {
			_, err = f.ReadAt(make([]byte, 1), 0)
			if name == "mem" && errors.Is(err, syscall.EIO) { // nothing lies at 0
				err = nil
			}
			f.Close()
		}
		put("/proc/"+name, err)
	}
	_, err = os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	put("/proc/fd", err)
	local := []unix.Iovec{{Base: new(byte), Len: 1}}
	if _, err = unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: 4096, Len: 1}}, 0); errors.Is(err, unix.EFAULT) {
		err = nil
	}
	put("process_vm_readv", err)
	runtime.LockOSThread()
	if err = syscall.PtraceAttach(pid); err == nil {
		_, err = syscall.Wait4(pid, nil, unix.WALL, nil)
		err = errors.Join(err, syscall.PtraceDetach(pid))
	}
	put("ptrace", err)
	_ = json.NewEncoder(os.Stdout).Encode(result)
}

// steal runs the thief on a process.
func (s *stage) steal(pid int) map[string]string {
	s.t.Helper()
	out := s.other("solekey-thief").start(setting{stdin: s.value + "\n"}, strconv.Itoa(pid))
	var result map[string]string
	if err := json.Unmarshal([]byte(out.stdout), &result); err != nil || len(result) < 7 {
		s.t.Fatalf("the thief: %v", out)
	}
	return result
}

// TestSameUserCannotReadAServer has another process of the same user, who is
// not root, try to read a server.
func TestSameUserCannotReadAServer(t *testing.T) {
	t.Parallel()
	s := newStage(t, true)
	c := s.bare(setting{})
	for way, got := range s.steal(c.Process.Pid) {
		if got == "refused" {
			t.Skipf("control: %s of a process that is not protected is refused here too", way)
		}
		if way == "mem" && got != "found" || way != "mem" && got != "open" {
			t.Errorf("control: %s of a process that is not protected: %s", way, got)
		}
	}
	gcore, _ := exec.LookPath("gcore")
	if gcore != "" && !s.gcore(gcore, c.Process.Pid) {
		t.Log("gcore makes no core of anybody here")
		gcore = ""
	}
	s.servers(setting{}, func(name string, pid int, end func() (*os.ProcessState, string)) {
		for way, got := range s.steal(pid) {
			if got != "refused" {
				t.Errorf("%s of solekey %s: %s, want refused", way, name, got)
			}
		}
		if gcore != "" && s.gcore(gcore, pid) {
			t.Errorf("gcore takes a core of solekey %s", name)
		}
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if _, said := end(); s.has([]byte(said)) {
			t.Errorf("solekey %s says what it holds", name)
		}
	})
}

// gcore runs gcore as the user of the stage, and reports whether it wrote a
// file that holds the value.
func (s *stage) gcore(path string, pid int) bool {
	s.t.Helper()
	to := filepath.Join(s.root, "tmp", "gcore")
	w := *s.world
	if w.bin = path; s.dropped {
		text, err := os.ReadFile(s.program("solekey"))
		if err != nil {
			s.t.Fatal(err)
		}
		w.bin = filepath.Join(s.root, "as", "gcore")
		if err := os.WriteFile(w.bin, []byte(strings.ReplaceAll(string(text), filepath.Join(s.root, "bin", "solekey"), path)), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	w.start(setting{}, "-o", to, strconv.Itoa(pid))
	b, err := os.ReadFile(fmt.Sprintf("%s.%d", to, pid))
	if err != nil {
		return false
	}
	_ = os.Remove(fmt.Sprintf("%s.%d", to, pid))
	return bytes.Contains(b, []byte(s.value))
}

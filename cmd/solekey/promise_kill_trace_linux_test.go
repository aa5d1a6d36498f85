package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// death says where a process is killed: at its system call number at of those
// that change something that outlives it, counted from 1, before the call
// takes effect or after. The zero value lets it live.
type death struct {
	at    int
	after bool
}

// life is what became of a traced process.
type life struct {
	calls  int    // that change something
	last   string // the one at which it was killed
	killed bool
	code   int
	output string // stdout and stderr
}

func (l life) String() string {
	return fmt.Sprintf("%d calls, killed %v at %s, exit code %d\n%s", l.calls, l.killed, l.last, l.code, l.output)
}

// errNoTrace says that this system lets no test trace a process.
var errNoTrace = errors.New("a process cannot be traced here")

// lastingCalls change something that outlives the process. write counts only
// for a file.
var lastingCalls = map[uint64]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PWRITEV: "pwritev", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_SYNC_FILE_RANGE: "sync_file_range",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_COPY_FILE_RANGE: "copy_file_range",
	unix.SYS_OPENAT: "openat",
}

// callInfo is struct ptrace_syscall_info of Linux 5.3.
type callInfo struct {
	op   uint8 // 1 at the entry, 2 at the exit of a call
	_    [7]uint8
	_, _ uint64    // where the code and the stack are
	nr   uint64    // at the entry
	args [6]uint64 // at the entry
	_    [2]uint64
}

const (
	ptraceGetSyscallInfo = 0x420e
	ptraceExitKill       = 0x100000
)

// tracee is a traced process.
type tracee struct {
	pid    int
	below  string // where files count
	death  death
	life   life
	fated  int // thread whose call kills at its exit
	status syscall.WaitStatus
}

// trace runs a program to its end or to its death. Files below the directory
// count.
func trace(bin string, args, env []string, below string, d death) (life, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := os.CreateTemp("", "output")
	if err != nil {
		return life{}, err
	}
	defer func() { _ = errors.Join(out.Close(), os.Remove(out.Name())) }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return life{}, err
	}
	defer func() { _ = null.Close() }()
	t := &tracee{below: below, death: d}
	t.pid, err = syscall.ForkExec(bin, append([]string{bin}, args...), &syscall.ProcAttr{
		Dir: below, Env: env, Files: []uintptr{null.Fd(), out.Fd(), out.Fd()}, Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return life{}, errors.Join(errNoTrace, err)
	}
	err = t.run()
	b, readErr := os.ReadFile(out.Name())
	t.life.output, t.life.code = string(b), t.status.ExitStatus()
	return t.life, errors.Join(err, readErr)
}

func (t *tracee) run() error {
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(t.pid, &ws, 0, nil); err != nil || !ws.Stopped() {
		return errors.Join(errNoTrace, err)
	}
	if err := syscall.PtraceSetOptions(t.pid, syscall.PTRACE_O_TRACESYSGOOD|syscall.PTRACE_O_TRACECLONE|ptraceExitKill); err != nil {
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(t.pid, &ws, 0, nil)
		return errors.Join(errNoTrace, err)
	}
	if err := syscall.PtraceSyscall(t.pid, 0); err != nil {
		return err
	}
	for {
		tid, err := syscall.Wait4(-t.pid, &ws, syscall.WALL, nil) // its process group: no child of another test
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.ECHILD):
			return nil
		case err != nil:
			return err
		}
		if tid == t.pid && (ws.Exited() || ws.Signaled()) {
			t.status = ws
		}
		if !ws.Stopped() {
			continue
		}
		signal := 0
		switch s := ws.StopSignal(); {
		case s == syscall.SIGTRAP|0x80:
			if err := t.call(tid); err != nil {
				return err
			}
		case s != syscall.SIGTRAP && s != syscall.SIGSTOP:
			signal = int(s)
		}
		if err := syscall.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
}

// call looks at the entry or the exit of a call, and kills if it is the one.
func (t *tracee) call(tid int) error {
	var info callInfo
	if _, _, no := syscall.Syscall6(syscall.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); no != 0 {
		if no == syscall.ESRCH { // killed meanwhile
			return nil
		}
		_ = syscall.Kill(t.pid, syscall.SIGKILL)
		return errors.Join(errNoTrace, no)
	}
	switch {
	case t.life.killed:
	case info.op == 2 && tid == t.fated:
		t.kill()
	case info.op == 1 && t.lasts(tid, &info):
		t.life.calls++
		if t.life.calls != t.death.at {
			break
		}
		t.life.last = lastingCalls[info.nr]
		if !t.death.after {
			t.kill()
			break
		}
		t.fated = tid
	}
	return nil
}

func (t *tracee) kill() {
	t.life.killed = true
	_ = syscall.Kill(t.pid, syscall.SIGKILL)
}

// lasts reports whether a call changes a file.
func (t *tracee) lasts(tid int, info *callInfo) bool {
	switch info.nr {
	case unix.SYS_OPENAT:
		return info.args[2]&(unix.O_CREAT|unix.O_TRUNC) != 0
	case unix.SYS_WRITE:
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, info.args[0]))
		return err == nil && strings.HasPrefix(path, t.below+string(filepath.Separator))
	}
	return lastingCalls[info.nr] != ""
}

// keep remembers every file below the directories, in memory.
type kept struct {
	dirs  []string
	files map[string][]byte
	modes map[string]os.FileMode
}

func keepTree(dirs ...string) (*kept, error) {
	k := &kept{dirs: dirs, files: make(map[string][]byte), modes: make(map[string]os.FileMode)}
	for _, dir := range dirs {
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			k.modes[path] = info.Mode()
			if info.Mode().IsRegular() {
				k.files[path], err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return k, nil
}

// back makes the directories as they were.
func (k *kept) back() error {
	for _, dir := range k.dirs {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	paths := make([]string, 0, len(k.modes))
	for p := range k.modes {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		var err error
		if k.modes[p].IsDir() {
			err = os.Mkdir(p, k.modes[p].Perm())
		} else {
			err = os.WriteFile(p, k.files[p], k.modes[p].Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

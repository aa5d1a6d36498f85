package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/rogpeppe/go-internal/testscript"
)

// ptyRun runs a command on a pseudo-terminal of its own and answers its
// questions: pty CODE FILE COMMAND ARGS.. Each line of the file is
// PROMPT => ANSWER: once the terminal shows PROMPT, ANSWER is typed, with the
// escapes of a Go string. What the terminal showed is on stdout; the
// command's own stdout follows a line of dashes.
func ptyRun(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: pty CODE FILE COMMAND ARGS..")
	}
	ctrl, tty, err := openPty()
	ts.Check(err)
	defer ctrl.Close()
	cmd := command(ts, args[2:]...)
	var stdout, stderr strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(""), &stdout, &stderr
	cmd.ExtraFiles = []*os.File{tty}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	ts.Check(cmd.Start())
	_ = tty.Close()
	stop := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	shown, playErr := play(ctrl, ts.ReadFile(args[1]))
	err = cmd.Wait()
	fmt.Fprintf(ts.Stdout(), "%s\n----\n%s", strings.ReplaceAll(shown, "\r", ""), stdout.String())
	fmt.Fprint(ts.Stderr(), stderr.String())
	code := 0
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		code = x.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] || playErr != nil {
		ts.Fatalf("exit code %d, want %s; %v\n%s\n%s", code, args[0], playErr, shown, stderr.String())
	}
}

// play answers questions until the terminal is closed by its last user.
func play(ctrl *os.File, dialogue string) (shown string, err error) {
	var all strings.Builder
	from := 0
	buf := make([]byte, 4096)
	for l := range strings.Lines(dialogue) {
		prompt, answer, ok := strings.Cut(strings.TrimSuffix(l, "\n"), " => ")
		if !ok {
			continue
		}
		for !strings.Contains(all.String()[from:], prompt) {
			n, err := ctrl.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				return all.String(), fmt.Errorf("never asked %q", prompt)
			}
		}
		from = all.Len()
		text, err := strconv.Unquote(`"` + answer + `"`)
		if err != nil {
			return all.String(), err
		}
		if _, err := io.WriteString(ctrl, text); err != nil {
			return all.String(), err
		}
	}
	for {
		n, err := ctrl.Read(buf)
		all.Write(buf[:n])
		if err != nil { // EIO: nobody has the terminal open
			return all.String(), nil
		}
	}
}

// openPty returns both ends of a new pseudo-terminal.
func openPty() (ctrl, tty *os.File, err error) {
	ctrl, err = os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	var n, unlock uint32
	for _, call := range []struct {
		request uintptr
		arg     *uint32
	}{{syscall.TIOCGPTN, &n}, {syscall.TIOCSPTLCK, &unlock}} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, ctrl.Fd(), call.request, uintptr(unsafe.Pointer(call.arg))); errno != 0 {
			_ = ctrl.Close()
			return nil, nil, errno
		}
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		_ = ctrl.Close()
	}
	return ctrl, tty, err
}

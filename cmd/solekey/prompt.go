package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Prompts open the terminal device, so they work while stdin and stdout are
// pipes. They read in raw mode: the line discipline would cut a long value at
// 4096 bytes. Ctrl-C, a signal and the end of input all restore the terminal
// first.

// maxTyped bounds what a prompt takes.
const maxTyped = 1 << 20

var (
	errTooLong   = failf(exitUsage, "this is too long for a prompt").hint("the same command with --stdin, or --file PATH")
	errManyLines = failf(exitUsage, "several lines were pasted; nothing was stored").hint("the same command with --stdin, or --file PATH")
)

// terminal is the terminal device of this session.
type terminal struct {
	in, out *os.File
	ahead   []byte // typed, and not yet part of a line
}

// openTerminal opens the device, whatever stdin and stdout are.
func openTerminal() (*terminal, error) {
	if runtime.GOOS == "windows" {
		in, err := os.OpenFile("CONIN$", os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		out, err := os.OpenFile("CONOUT$", os.O_RDWR, 0)
		if err != nil {
			_ = in.Close()
			return nil, err
		}
		return &terminal{in: in, out: out}, nil
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &terminal{in: f, out: f}, nil
}

// Close closes the device.
func (t *terminal) Close() {
	_ = t.in.Close()
	if t.out != t.in {
		_ = t.out.Close()
	}
}

// needsFlag is the error of a question that nobody is there to answer.
func needsFlag(question, flag string) error {
	return failf(exitUsage, "no terminal to ask on: %s", question).hint("the same command with " + flag)
}

// printf writes to the terminal.
func (t *terminal) printf(format string, args ...any) { fmt.Fprintf(t.out, format, args...) }

// ask shows a question and returns the answer without blanks around it.
func (t *terminal) ask(ctx context.Context, question string) (string, error) {
	b, err := t.line(ctx, question, true)
	return strings.TrimSpace(string(b)), err
}

// secret shows a question, reads a line that is not shown and says how long
// it was, as proof of paste.
func (t *terminal) secret(ctx context.Context, question string) ([]byte, error) {
	b, err := t.line(ctx, question+" (hidden): ", false)
	if err != nil {
		return nil, err
	}
	t.printf("read %s\n", count(utf8.RuneCount(b), "character"))
	return b, nil
}

// confirm asks for yes or no; the default is no.
func (t *terminal) confirm(ctx context.Context, question string) (bool, error) {
	s, err := t.ask(ctx, question+" [y/N] ")
	return strings.EqualFold(s, "y") || strings.EqualFold(s, "yes"), err
}

// line reads one line in raw mode.
func (t *terminal) line(ctx context.Context, question string, echo bool) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, errInterrupted
	}
	restore, err := t.raw()
	if err != nil {
		return nil, fmt.Errorf("preparing the terminal: %w", err)
	}
	defer restore()
	defer context.AfterFunc(ctx, func() { _ = t.in.SetReadDeadline(time.Unix(1, 0)) })()
	t.printf("%s", question)
	l := editor{echo: echo, out: t.out}
	var buf [1024]byte
	for {
		n, err := t.read(buf[:])
		used, done, editErr := l.feed(buf[:n])
		t.ahead = append(t.ahead, buf[used:n]...)
		clear(buf[:n])
		switch {
		case ctx.Err() != nil, errors.Is(editErr, errInterrupted):
			t.printf("\r\n")
			l.wipe()
			return nil, errInterrupted
		case editErr != nil:
			t.printf("\r\n")
			l.wipe()
			return nil, editErr
		case done:
			if echo {
				t.printf("\r\n")
			}
			return l.text, nil
		case errors.Is(err, io.EOF):
			t.printf("\r\n")
			l.wipe()
			return nil, errInterrupted
		case err != nil:
			l.wipe()
			return nil, fmt.Errorf("reading the terminal: %w", err)
		}
	}
}

// read returns what was typed ahead, else what is typed next.
func (t *terminal) read(buf []byte) (int, error) {
	if len(t.ahead) > 0 {
		n := copy(buf, t.ahead)
		clear(t.ahead[:n])
		t.ahead = t.ahead[n:]
		return n, nil
	}
	return t.in.Read(buf)
}

// noText are the bytes that end input and are none of it.
const noText = "\r\n\x04"

// settled returns errManyLines if more was typed than the questions so far
// took: somebody pasted several lines, and the first alone is not what they
// meant. The rest is read off, so that it does not reach the shell. Where the
// device knows no deadline, only what was read already is seen.
func (t *terminal) settled() error {
	more := len(bytes.Trim(t.ahead, noText)) > 0
	clear(t.ahead)
	t.ahead = nil
	restore, err := t.raw()
	if err != nil {
		return fmt.Errorf("preparing the terminal: %w", err)
	}
	defer restore()
	if t.in.SetReadDeadline(time.Now().Add(settleTime)) == nil {
		var buf [1024]byte
		for {
			n, err := t.in.Read(buf[:])
			more = more || len(bytes.Trim(buf[:n], noText)) > 0
			clear(buf[:n])
			if err != nil {
				break
			}
		}
		_ = t.in.SetReadDeadline(time.Time{})
	}
	if more {
		return errManyLines
	}
	return nil
}

// settleTime is how long a terminal may take to deliver the rest of a paste.
const settleTime = 40 * time.Millisecond

// raw puts the terminal into raw mode and returns what undoes it. The
// descriptor is not taken out of the file, since that would make its reads
// uninterruptible.
func (t *terminal) raw() (restore func(), err error) {
	var old *term.State
	conn, err := t.in.SyscallConn()
	if err != nil {
		return nil, err
	}
	var rawErr error
	if err := conn.Control(func(fd uintptr) { old, rawErr = term.MakeRaw(int(fd)) }); err != nil {
		return nil, err
	}
	if rawErr != nil {
		return nil, rawErr
	}
	return func() { _ = conn.Control(func(fd uintptr) { _ = term.Restore(int(fd), old) }) }, nil
}

// editor is the line being typed.
type editor struct {
	echo bool
	out  io.Writer
	text []byte
	esc  int // bytes of an escape sequence so far
}

// The control bytes that a line knows.
const (
	ctrlC, ctrlD, ctrlU, ctrlW = 0x03, 0x04, 0x15, 0x17
	backspace, del, escape     = 0x08, 0x7f, 0x1b
)

// feed takes bytes from the terminal up to the end of the line, and reports
// how many it took and whether the line is done.
func (l *editor) feed(b []byte) (used int, done bool, err error) {
	for i, c := range b {
		if done, err = l.key(c); done || err != nil {
			used = i + 1
			if c == '\r' && used < len(b) && b[used] == '\n' {
				used++
			}
			return used, done, err
		}
	}
	return len(b), false, nil
}

func (l *editor) key(c byte) (done bool, err error) {
	if l.esc > 0 {
		l.escaped(c)
		return false, nil
	}
	switch c {
	case '\r', '\n':
		return true, nil
	case ctrlC:
		return false, errInterrupted
	case ctrlD:
		if len(l.text) == 0 {
			return false, errInterrupted
		}
	case ctrlU, ctrlW:
		for len(l.text) > 0 {
			l.erase()
		}
	case backspace, del:
		l.erase()
	case escape:
		l.esc = 1
	default:
		return false, l.insert(c)
	}
	return false, nil
}

// escaped swallows the sequences of arrow keys and of bracketed paste.
func (l *editor) escaped(c byte) {
	l.esc++
	if l.esc == 2 && (c == '[' || c == 'O') {
		return
	}
	if c >= 0x40 || l.esc > 16 {
		l.esc = 0
	}
}

func (l *editor) insert(c byte) error {
	if len(l.text) >= maxTyped {
		return errTooLong
	}
	if len(l.text) == cap(l.text) { // grow without leaving a copy behind
		grown := make([]byte, len(l.text), max(256, 2*cap(l.text)))
		copy(grown, l.text)
		clear(l.text)
		l.text = grown
	}
	l.text = append(l.text, c)
	if l.echo {
		_, _ = l.out.Write([]byte{c})
	}
	return nil
}

// erase removes the last character.
func (l *editor) erase() {
	if len(l.text) == 0 {
		return
	}
	_, n := utf8.DecodeLastRune(l.text)
	l.text = slices.Delete(l.text, len(l.text)-n, len(l.text))
	if l.echo {
		_, _ = io.WriteString(l.out, "\b \b")
	}
}

func (l *editor) wipe() { clear(l.text); l.text = nil }

// confirm asks on the terminal unless --yes answers.
func (a *app) confirm(ctx context.Context, question string) error {
	if a.conf.yes {
		return nil
	}
	t, err := openTerminal()
	if err != nil {
		return needsFlag(question, "--yes")
	}
	defer t.Close()
	ok, err := t.confirm(ctx, question)
	if err != nil {
		return err
	}
	if !ok {
		return errNotConfirmed
	}
	return nil
}

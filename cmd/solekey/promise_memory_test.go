//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/storage"
)

// coreLimit returns the line of /proc/PID/limits about cores.
func coreLimit(t *testing.T, pid string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, "Max core file size"); ok {
			return strings.Join(strings.Fields(rest), " ")
		}
	}
	return ""
}

// TestProcessHidesBeforeItReadsAKey gives get a descriptor whose key never
// comes, and looks whether the process that waits for it is hidden.
func TestProcessHidesBeforeItReadsAKey(t *testing.T) {
	t.Parallel()
	if strings.HasPrefix(coreLimit(t, "self"), "0 0 ") {
		t.Skip("control: cores are off here for everybody")
	}
	w := newWorld(t)
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer in.Close()
	cmd := w.command(t.Context(), setting{fd3: r}, "get", "TOKEN", "--api-key-fd", "3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	pid := fmt.Sprint(cmd.Process.Pid)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(patience / 4); !strings.HasPrefix(coreLimit(t, pid), "0 0 "); <-tick.C {
		if time.Now().After(until) {
			t.Fatalf("the process that waits for its key has the core limit %q, want 0 0", coreLimit(t, pid))
		}
	}
}

// TestSignalsDumpNothing sends a server the signals at which a Go program
// prints its goroutines.
func TestSignalsDumpNothing(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGTRAP, syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGSYS} {
		s := w.serve("--profile", "bot")
		s.get("TOKEN").wants(t, "get_secret", hostileValue, "")
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		s.end()
		if said := s.stderr.Bytes(); crash.Match(said) || bytes.Count(said, []byte("\n")) > 3 {
			t.Errorf("a server that gets %v says %s", sig, said)
		}
	}
	// Control: what the runtime prints would be found.
	if !crash.MatchString("SIGQUIT: quit\nPC=0x1\n") {
		t.Error("a dump would not be found")
	}
}

// TestCreateAtOnceLeavesOne makes one identity from several processes at the
// same time, with a profile and without.
func TestCreateAtOnceLeavesOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, flags := range [][]string{nil, {"--print-key"}} {
		name := fmt.Sprintf("crowd%d", len(flags))
		out := make([]outcome, 5)
		var wg sync.WaitGroup
		for i := range out {
			wg.Go(func() { out[i] = w.run(append([]string{"identity", "create", name}, flags...)...) })
		}
		wg.Wait()
		won := 0
		for _, o := range out {
			if o.code == 0 {
				won++
			} else if o.code != exitExists || !tryLine.MatchString(o.stderr) || strings.Contains(o.stdout, "slk1_") {
				t.Errorf("create %s at the same time: %v", name, o)
			}
		}
		if list := w.must("identity", "list").stdout; won != 1 || strings.Count(list, name+" ") != 1 {
			t.Errorf("%d of %d commands made %s:\n%s", won, len(out), name, list)
		}
	}
}

// TestBusyStoreNamesItsHolder holds the turn: commands say who has it, and a
// revocation waits for its end.
func TestBusyStoreNamesItsHolder(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	f, err := os.OpenFile(filepath.Join(w.store, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	out := w.run("identity", "list")
	if out.code != exitUnavailable || !tryLine.MatchString(out.stderr) {
		t.Errorf("identity list while another process has the turn: %v", out)
	}
	cmd := w.command(t.Context(), setting{}, "identity", "revoke", "bot", "--yes")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.Contains(line, "waiting for ") {
		t.Errorf("revoke says %q, %v, want whom it waits for", line, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("revoke after the wait: %v", err)
	}
	w.refuses(t, []int{exitRefused}, w.conf, setting{}, "get", "TOKEN", "--profile", "bot")
}

func TestHolderIsReadFromTheEngine(t *testing.T) {
	for text, pid := range map[string]string{
		"waiting 2s for the store, held by process 42 since 2026-01-02T03:04:05Z": "42",
		"the store is busy: held by pid 7 since 2026-01-02T03:04:05Z":             "7",
		"waiting 2s for the store": "", "held by pid x since 2026": "", "held by": "",
	} {
		err := fmt.Errorf("reading store record: %w", fmt.Errorf("%s: %w", text, storage.ErrUnavailable))
		got := explain(err)
		if holder(err).pid != pid || got.exit != exitUnavailable || len(got.try) == 0 {
			t.Errorf("%q: holder %+v, %+v, want pid %q", text, holder(err), got, pid)
		}
		if pid != "" && (!strings.Contains(got.message, "held by pid "+pid+" since 2026-01-02T03:04:05Z") || !strings.Contains(got.try[0], pid)) {
			t.Errorf("%q is told as %q, %q", text, got.message, got.try)
		}
	}
	if got := holder(errors.New("held by pid 7 since 2026")); got.pid != "" {
		t.Errorf("control: another error names %v", got)
	}
}

func TestWordsForPeople(t *testing.T) {
	for in, want := range map[string]string{
		"There is no identity x.": "there is no identity x", "A key has at most 8 globs.": "a key has at most 8 globs", "TOTP is late.": "TOTP is late",
		"Token: field x is empty.": "Token: field x is empty", "internal error": "internal error", "": "",
	} {
		if got := sentence(in); got != want {
			t.Errorf("sentence(%q) = %q, want %q", in, got, want)
		}
	}
	for want, got := range map[string]string{"1 identity": count(1, "identity"), "2 identities": count(2, "identity"), "0 keys": count(0, "key")} {
		if got != want {
			t.Errorf("count = %q, want %q", got, want)
		}
	}
}

//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// logFault makes the audit log unwritable, and returns what ends that.
type logFault struct {
	name  string
	begin func(t *testing.T, log string) (end func())
}

var logFaults = []logFault{
	{"read-only", func(t *testing.T, log string) func() {
		return freeze(t, log)
	}},
	{"a directory", func(t *testing.T, log string) func() {
		rename(t, log, log+".kept")
		if err := os.Mkdir(log, 0o700); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(log); err != nil {
				t.Fatal(err)
			}
			rename(t, log+".kept", log)
		}
	}},
	{"removed", func(t *testing.T, log string) func() {
		rename(t, log, log+".kept")
		return func() { rename(t, log+".kept", log) }
	}},
}

// freeze makes a file unwritable for root too, and skips the test where
// nothing does that.
func freeze(t *testing.T, path string) (undo func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if err := os.Chmod(path, 0o400); err != nil {
			t.Fatal(err)
		}
		return func() { _ = os.Chmod(path, 0o600) }
	}
	if out, err := exec.Command("chattr", "+i", path).CombinedOutput(); err != nil {
		t.Skipf("root writes to every file and chattr +i does not work here: %v: %s", err, out)
	}
	undo = sync.OnceFunc(func() { _ = exec.Command("chattr", "-i", path).Run() })
	t.Cleanup(undo) // else the directory could not be removed
	return undo
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// witness is a store with what the fault tests ask for.
type witness struct {
	*world
	value, seed string
}

func newWitness(t *testing.T, w *world) *witness {
	x := &witness{world: w, value: "CANARY-unlogged-7c1f02", seed: "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"}
	for _, name := range []string{"bot", "leaver"} {
		w.must("identity", "create", name)
		w.put(name, "TOKEN", x.value)
		w.put(name, "otp", "otpauth://totp/A:b?secret="+x.seed)
		w.must("get", "TOKEN", "--profile", name) // from here on a read commits nothing
	}
	return x
}

// silent wants that nothing comes out of a server, nor of the command line.
func (x *witness) silent(t *testing.T, when string, s *server) {
	t.Helper()
	for tool, args := range map[string]map[string]any{
		"get_secret": {"label": "TOKEN"}, "get_totp_code": {"label": "otp", "min_remaining": 0}, "list_labels": {},
	} {
		a := s.mustCall(tool, args)
		if a.word != "audit_unavailable" || a.fields != nil {
			t.Errorf("%s, %s = %v, want audit_unavailable", when, tool, a)
		}
	}
	for _, args := range [][]string{{"get", "TOKEN", "--profile", "bot"}, {"code", "otp", "--profile", "bot", "--min-remaining", "0"}} {
		out := x.run(args...)
		if out.code != 7 || out.stdout != "" || !strings.Contains(out.stderr, "try: ") {
			t.Errorf("%s, solekey %q: %v, want exit code 7 and nothing on stdout", when, args, out)
		}
	}
	out := x.start(setting{stdin: "another value"}, "put", "TOKEN", "--identity", "bot", "--stdin")
	if out.code != 7 {
		t.Errorf("%s, put: %v, want exit code 7", when, out)
	}
}

// TestNoRecordNoSecret takes the log away in several ways, from servers that
// run and from ones that start: nothing comes out, the answer names the
// cause, keys can still be closed, and service goes on once the log is back.
func TestNoRecordNoSecret(t *testing.T) {
	t.Parallel()
	for _, f := range logFaults {
		t.Run(strings.ReplaceAll(f.name, " ", "_"), func(t *testing.T) {
			x := newWitness(t, newWorld(t))
			s, leaver := x.serve("--profile", "bot"), x.serve("--profile", "leaver")
			// Control: before the fault the same calls give values.
			s.get("TOKEN").wants(t, "before", x.value, "")
			leaver.get("TOKEN").wants(t, "before", x.value, "")

			end := f.begin(t, filepath.Join(x.store, "audit.jsonl"))
			x.silent(t, "running server", s)
			x.silent(t, "server that started later", x.serve("--profile", "bot"))
			if out := x.run("identity", "revoke", "leaver", "--yes"); out.code != 0 {
				t.Errorf("revoke without a log: %v", out)
			}
			if a := leaver.get("TOKEN"); a.fields != nil || (a.word != "revoked" && a.word != "audit_unavailable") {
				t.Errorf("after revoke without a log: %v", a)
			}

			end()
			s.get("TOKEN").wants(t, "once the log is back", x.value, "")
			if a := s.get("TOKEN"); a.fields["version"] != 1.0 {
				t.Errorf("a put that was refused was made: %v", a)
			}
			leaver.get("TOKEN").wants(t, "a revoked key once the log is back", "", "revoked")
			if out := x.run("audit", "verify"); out.code != 0 {
				t.Errorf("audit verify: %v", out)
			}
		})
	}
}

// TestEveryValueHasItsLine fills the disk under a server, or limits the size
// of its files, in the middle of its work: each value that came out has a
// line in the log, and from the first refusal on none comes out.
func TestEveryValueHasItsLine(t *testing.T) {
	t.Parallel()
	t.Run("full_disk", func(t *testing.T) {
		w := newBareWorld(t)
		mountSmall(t, filepath.Dir(w.store))
		w.must("init", "--root", "file", "--no-recovery")
		x := newWitness(t, w)
		s, leaver := x.serve("--profile", "bot"), x.serve("--profile", "leaver")
		fill := filepath.Join(filepath.Dir(x.store), "fill")
		fillDisk(t, fill)
		x.drain(t, s)
		x.silent(t, "full disk", s)
		// The receipt may find no room; the key is closed all the same.
		if out := x.run("identity", "revoke", "leaver", "--yes"); !strings.HasPrefix(out.stdout, "revoked ") || (out.code == 0) != strings.Contains(out.stdout, "\nreceipt ") ||
			out.code != 0 && (out.code != exitUnavailable || !strings.HasPrefix(out.stderr, "solekey: the keys are closed") || !strings.Contains(out.stderr, "the disk is full") || !tryLine.MatchString(out.stderr)) {
			t.Errorf("revoke on a full disk: %v", out)
		}
		if a := leaver.get("TOKEN"); a.fields != nil || a.word == "" {
			t.Errorf("after revoke on a full disk: %v", a)
		}
		if err := os.Remove(fill); err != nil {
			t.Fatal(err)
		}
		s.get("TOKEN").wants(t, "with room again", x.value, "")
		leaver.get("TOKEN").wants(t, "a revoked key with room again", "", "revoked")
		if out := x.run("audit", "verify"); out.code != 0 {
			t.Errorf("audit verify: %v", out)
		}
	})
	t.Run("file_size_limit", func(t *testing.T) {
		x := newWitness(t, newWorld(t))
		info, err := os.Stat(filepath.Join(x.store, "audit.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		// The unit is 512 or 1024 bytes, as the shell likes.
		s := x.serveWith(setting{shell: fmt.Sprintf("ulimit -f %d", info.Size()/512+9)}, "--profile", "bot")
		x.drain(t, s)
		s.get("TOKEN").wants(t, "at the limit", "", "audit_unavailable")
		// Control: a process without the limit is served meanwhile.
		x.serve("--profile", "bot").get("TOKEN").wants(t, "without the limit", x.value, "")
		x.must("get", "TOKEN", "--profile", "bot")
		x.must("identity", "revoke", "leaver", "--yes")
		x.must("audit", "verify")
	})
}

// drain reads until the log takes no more, and compares the number of values
// with the number of lines.
func (x *witness) drain(t *testing.T, s *server) {
	t.Helper()
	const line = `"ev":"get","res":"allow"`
	log := filepath.Join(x.store, "audit.jsonl")
	before := count64(t, log, line)
	values, refusals := 0, 0
	for range 400 {
		a := s.get("TOKEN")
		switch {
		case a.text("value") == x.value && refusals == 0:
			values++
		case a.fields != nil:
			t.Fatalf("after %d refusals: %v", refusals, a)
		case a.word != "audit_unavailable":
			t.Fatalf("a call = %v, want audit_unavailable", a)
		default:
			refusals++
		}
		if refusals == 3 {
			break
		}
	}
	if lines := count64(t, log, line) - before; lines != values || values == 0 || refusals == 0 {
		t.Errorf("%d values, %d lines of values, %d refusals", values, lines, refusals)
	}
}

func count64(t *testing.T, path, what string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte(what))
}

// mountSmall puts a small file system on a directory, and skips the test
// where it may not.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a small file system")
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a small file system: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
}

// fillDisk writes until there is no room.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil && !errors.Is(err, io.ErrShortWrite) {
			t.Fatal(err)
		}
	}
}

// TestReceiptAdmitsADamagedLog takes away, by a cut, an edit or a drop, the
// line of a read. The log is written again after that, with a note of the
// gap; the receipt must not call itself complete, since a value that came out
// is missing in it.
func TestReceiptAdmitsADamagedLog(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(lines [][]byte) [][]byte{
		"cut":     func(ls [][]byte) [][]byte { return ls[:len(ls)-2] },
		"emptied": func([][]byte) [][]byte { return nil },
		"edited": func(ls [][]byte) [][]byte {
			at := len(ls) - 2
			return slices.Concat(ls[:at], [][]byte{bytes.Replace(ls[at], []byte(`"allow"`), []byte(`"deny"`), 1)}, ls[at+1:])
		},
		"dropped": func(ls [][]byte) [][]byte { return slices.Concat(ls[:len(ls)-2], ls[len(ls)-1:]) },
		"control": func(ls [][]byte) [][]byte { return ls },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.must("identity", "create", "bot")
			for _, label := range []string{"FIRST", "SECOND"} {
				w.put("bot", label, "value")
			}
			w.must("get", "FIRST", "--profile", "bot")
			w.must("get", "SECOND", "--profile", "bot")
			log := filepath.Join(w.store, "audit.jsonl")
			if err := os.WriteFile(log, bytes.Join(damage(logLines(t, log)), nil), 0o600); err != nil {
				t.Fatal(err)
			}
			r := w.receipt("identity", "revoke", "bot", "--yes")
			if _, named := timesOf(r)["FIRST"]; named != (name == "control") || r.Audit.Complete != (name == "control") {
				t.Errorf("the receipt names %v and says complete: %v", timesOf(r), r.Audit.Complete)
			}
			want := 8
			if name == "control" {
				want = 0
			}
			if out := w.run("audit", "verify"); out.code != want {
				t.Errorf("audit verify: %v, want exit code %d", out, want)
			}
		})
	}
}

// TestVerifyFindsEveryChange edits, drops, swaps and doubles single lines of
// a log, one at a time: audit verify exits with 8 each time, and leaves the
// log as it found it.
func TestVerifyFindsEveryChange(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newWorld(t)
	w.must("identity", "create", "bot")
	w.put("bot", "TOKEN", "value")
	s := w.serve("--profile", "bot")
	log := filepath.Join(w.store, "audit.jsonl")
	for len(logLines(t, log)) < 60 {
		if s.get("TOKEN"); r.IntN(3) == 0 {
			s.get("absent")
		}
	}
	s.close()
	lines := logLines(t, log)
	changes := changesOf(r, lines)

	jobs := make(chan change)
	var workers sync.WaitGroup
	for i := range 2 {
		dir := filepath.Join(w.root, fmt.Sprint("copy-", i))
		copyTree(t, w.store, dir)
		workers.Go(func() {
			for c := range jobs {
				w.verifyFinds(dir, c)
			}
		})
	}
	for _, c := range changes {
		jobs <- c
	}
	close(jobs)
	workers.Wait()

	// Control: what nobody changed is in order, also in the copies.
	for _, dir := range []string{w.store, filepath.Join(w.root, "copy-0")} {
		if err := os.WriteFile(filepath.Join(dir, "audit.jsonl"), bytes.Join(lines, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := w.run("audit", "verify", "--home", dir); out.code != 0 || !strings.HasPrefix(out.stdout, "ok ") {
			t.Errorf("audit verify of the log as it was: %v", out)
		}
	}
}

// change is a log that somebody changed.
type change struct {
	name string
	log  []byte
}

// changesOf returns every single-line change, and with -short some of them;
// the first and the last line are always among them.
func changesOf(r *rand.Rand, lines [][]byte) []change {
	var out []change
	add := func(name string, i int, ls [][]byte) {
		out = append(out, change{fmt.Sprintf("%s of line %d of %d", name, i+1, len(lines)), bytes.Join(ls, nil)})
	}
	for i, l := range lines {
		if testing.Short() && i%9 != 0 && i != len(lines)-1 {
			continue
		}
		edited := bytes.Clone(l)
		at := r.IntN(len(l) - 1) // the line feed stays
		for edited[at] == l[at] || edited[at] == '\n' {
			edited[at] = byte(r.IntN(256))
		}
		add(fmt.Sprintf("edit of byte %d (%q for %q)", at, edited[at], l[at]), i, slices.Concat(lines[:i], [][]byte{edited}, lines[i+1:]))
		add("drop", i, slices.Concat(lines[:i], lines[i+1:]))
		add("double", i, slices.Concat(lines[:i+1], lines[i:]))
		if i+1 < len(lines) {
			add("swap", i, slices.Concat(lines[:i], [][]byte{lines[i+1], l}, lines[i+2:]))
		}
	}
	half := len(lines) / 2
	add("missing end", half, lines[:half])
	add("missing beginning", half, lines[half:])
	add("missing line feed", len(lines)-1, slices.Concat(lines[:len(lines)-1], [][]byte{bytes.TrimRight(lines[len(lines)-1], "\n")}))
	return out
}

func (w *world) verifyFinds(dir string, c change) {
	path := filepath.Join(dir, "audit.jsonl")
	if err := os.WriteFile(path, c.log, 0o600); err != nil {
		w.t.Error(err)
		return
	}
	if out := w.run("audit", "verify", "--home", dir); out.code != 8 {
		w.t.Errorf("audit verify after %s: %v, want exit code 8", c.name, out)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, c.log) {
		w.t.Errorf("audit verify changed the log after %s: %v", c.name, err)
	}
}

func logLines(t *testing.T, path string) [][]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(bytes.Lines(bytes.TrimRight(b, "\x00")))
}

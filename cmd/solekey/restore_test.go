package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// newKeptDesk is a desk whose store has a recovery key, in the file rec.
func newKeptDesk(t *testing.T) *desk {
	d := newDesk(t)
	for _, dir := range []string{d.store(), filepath.Dir(d.config("x"))} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	d.do(0, "init", "--root", "file", "--recovery-file", "rec")
	return d
}

// config returns the path of a file in the config directory.
func (d *desk) config(name string) string {
	d.t.Helper()
	c := newConfig(os.Getenv)
	path, err := c.configPath(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return path
}

// lines appends notes to the log, which goes on in a new file at limit bytes.
func (d *desk) lines(n int, limit int64) {
	d.t.Helper()
	s, err := bolt.Open(d.store(), bolt.Options{MaxLog: limit})
	if err != nil {
		d.t.Fatal(err)
	}
	for range n {
		if err := audit.Append(d.t.Context(), s, audit.Record{Time: time.Now(), Event: audit.Note, Key: audit.Owner, Via: "cli", Note: "filler"}); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// The attack on patience: a restore that waits for the recovery key or for an
// answer has looked at its directory already. A store that came to stand there
// meanwhile, by another restore or an init, must not be cleared away as the
// rest of one that was cut off.
func TestLateRestoreTouchesNoStore(t *testing.T) {
	for name, cut := range map[string]bool{"fresh": false, "cut off": true} {
		t.Run(name, func(t *testing.T) {
			d := newKeptDesk(t)
			d.do(0, "backup", "one.skb")
			if cut {
				if err := os.Mkdir("X", 0o700); err != nil {
					t.Fatal(err)
				}
				d.write("X/restore.pending", "of another one")
			}
			var out bytes.Buffer
			a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out, conf: newConfig(os.Getenv)}
			met := false
			a.now = func() time.Time {
				if !met { // the plan is made after the directory was looked at
					met = true
					if cut {
						if err := os.Remove("X/restore.pending"); err != nil {
							t.Fatal(err)
						}
					}
					d.do(0, "init", "--home", "X", "--no-recovery")
					d.do(0, "--home", "X", "identity", "create", "alive", "--profile", "alive")
					if cut {
						d.write("X/restore.pending", "of another one")
					}
				}
				return time.Now()
			}
			root := newRoot(a)
			root.SetArgs([]string{"--yes", "restore", "one.skb", "--into", "X", "--recovery-key-file", "rec"})
			exit := a.fail(root.ExecuteContext(context.Background()))
			if !met || exit != exitExists {
				t.Errorf("a late restore = %d, want %d\n%s", exit, exitExists, out.String())
			}
			if got := d.do(0, "--home", "X", "identity", "list"); !strings.Contains(got, "alive") {
				t.Errorf("the store that came to stand = %q", got)
			}
			d.do(0, "--yes", "restore", "one.skb", "--into", "Y", "--recovery-key-file", "rec") // control
		})
	}
}

// A log that went on in new files comes back with its numbers: the engine that
// it is written into may not add a line of its own where it would begin a new
// file. The control is an engine that does.
func TestLogOfManyFilesIsRestored(t *testing.T) {
	d := newKeptDesk(t)
	const limit = 15_000
	d.lines(storage.MaxBodies+30, limit)
	d.do(0, "backup", "one.skb")
	d.lines(1, limit) // the newest lines are in the last file alone

	restore := func(dir string, o bolt.Options) error {
		f, err := os.Open("one.skb")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ar, err := vault.OpenArchive(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		a := &app{now: time.Now, conf: newConfig(os.Getenv)}
		done, err := a.openArchive(t.Context(), ar, restoreFlags{recovery: recoveryFlags{file: "rec", fd: -1}})
		if err != nil {
			t.Fatal(err)
		}
		defer done()
		p, err := ar.Plan(t.Context(), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m := restoration{dir: dir, ar: ar, plan: p, now: time.Now, putRoot: func() error { return nil }}
		m.create = func(dir string) (storage.Backend, error) { return bolt.Create(dir, o) }
		return m.run(t.Context())
	}
	if err := restore(filepath.Join(d.home, "control"), bolt.Options{MaxLog: limit}); err == nil {
		t.Error("control: an engine that adds lines restores the log")
	}
	to := filepath.Join(d.home, "to")
	if err := restore(to, replaying(bolt.Options{MaxLog: limit})); err != nil {
		t.Fatal(err)
	}
	t.Setenv(envHome, to)
	d.do(0, "audit", "verify")
	d.lines(3, limit) // it goes on in a new file from here on
	if got := d.do(0, "audit", "verify"); !strings.Contains(got, "no gap") {
		t.Errorf("verify = %q", got)
	}
	if older, err := filepath.Glob(filepath.Join(to, "audit-*.jsonl")); err != nil || len(older) == 0 {
		t.Errorf("earlier files = %v, %v", older, err)
	}
}

// Earlier files of another log in the directory would be read as the beginning
// of the restored one: a directory with such files holds what is left of a
// store.
func TestRestoreBesideEarlierFilesOfALog(t *testing.T) {
	d := newKeptDesk(t)
	d.do(0, "backup", "one.skb")
	if err := os.Mkdir("X", 0o700); err != nil {
		t.Fatal(err)
	}
	d.write("X/audit-7.jsonl", "{}\n")
	restore := []string{"--yes", "restore", "one.skb", "--into", "X", "--recovery-key-file", "rec"}
	if got := d.do(exitExists, restore...); !strings.Contains(got, "audit-7.jsonl") {
		t.Errorf("restore = %q", got)
	}
	d.write("X/restore.pending", fmt.Sprintln("cut off")) // its own, of a run that was cut off
	d.do(0, restore...)
	d.do(0, "--home", "X", "audit", "verify")
}

// A ledger in several files closes what was revoked, whichever of its oldest
// files are gone, and so does one beside a backup that has no beginning of the
// log either. The control is a restore without it.
func TestLedgerInSeveralFiles(t *testing.T) {
	const limit = 3000
	d := newKeptDesk(t)
	d.do(0, "identity", "create", "gone")
	d.do(0, "identity", "create", "stays")
	d.lines(30, limit)
	d.do(0, "backup", "whole.skb")
	d.lines(30, limit)
	beside := t.TempDir()
	oldest := filepath.Join(d.store(), "audit-0.jsonl")
	if err := os.Rename(oldest, filepath.Join(beside, "audit-0.jsonl")); err != nil {
		t.Fatal(err)
	}
	d.do(0, "backup", "headless.skb")
	d.do(0, "restore", "headless.skb", "--verify", "--recovery-key-file", "rec")
	d.lines(30, limit)
	d.do(0, "identity", "revoke", "gone", "--yes")
	logs, err := bolt.LogFiles(d.store())
	if err != nil {
		t.Fatal(err)
	}
	copyTo := func(dir string, paths ...string) string {
		t.Helper()
		dir = filepath.Join(d.home, dir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			d.write(filepath.Join(dir, filepath.Base(p)), string(b))
		}
		return dir
	}
	left := copyTo("left", logs...)
	all := copyTo("all", append(logs, filepath.Join(beside, "audit-0.jsonl"))...)

	for n, c := range []struct {
		file, ledger string
		status, log  string
	}{
		{"whole.skb", "", "active", "no gap"},
		{"whole.skb", all, "revoked", "no gap"},
		{"whole.skb", left, "revoked", "no gap"},
		{"headless.skb", "", "active", "had been moved away"},
		{"headless.skb", left, "revoked", "had been moved away"},
		{"headless.skb", all, "revoked", "no gap"},
	} {
		to := fmt.Sprint("to", n)
		args := []string{"restore", c.file, "--into", to, "--recovery-key-file", "rec", "--yes"}
		if c.ledger != "" {
			args = append(args, "--ledger", c.ledger)
		}
		d.do(0, args...)
		if got := d.do(0, "--home", to, "identity", "list"); !strings.Contains(got, "gone   "+c.status) {
			t.Errorf("%s with %q: %s, want gone %s", c.file, c.ledger, got, c.status)
		}
		if got := d.do(0, "--home", to, "audit", "verify"); !strings.Contains(got, c.log) {
			t.Errorf("%s with %q: verify = %q, want %q", c.file, c.ledger, got, c.log)
		}
		d.do(0, "--home", to, "audit", "checkpoint")
		if c.ledger == all || c.file == "whole.skb" && c.ledger == left { // every line is there, as it was
			for _, line := range lastLines(t, logs) {
				if got := d.do(0, "--home", to, "audit", "export", "--sealed"); !strings.Contains(got, line) {
					t.Errorf("%s with %q lacks the line %s", c.file, c.ledger, line)
				}
			}
		}
	}
	last := filepath.Join(left, "audit.jsonl")
	if got := d.do(exitUsage, "restore", "whole.skb", "--into", "no", "--recovery-key-file", "rec", "--ledger", last); !strings.Contains(got, "files between are missing") {
		t.Errorf("the last file alone = %q", got)
	}
	other := copyTo("other", last)
	d.write(filepath.Join(other, filepath.Base(logs[len(logs)-2])), "{}\n")
	d.run("", "restore", "whole.skb", "--into", "no", "--recovery-key-file", "rec", "--ledger", other)
	if _, err := os.Stat("no"); err == nil {
		t.Error("a ledger with a forged file is taken")
	}
}

// lastLines returns the last line of each file.
func lastLines(t *testing.T, paths []string) (out []string) {
	t.Helper()
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		out = append(out, lines[len(lines)-1])
	}
	return out
}

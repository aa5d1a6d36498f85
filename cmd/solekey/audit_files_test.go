package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// TestLogInSeveralFilesIsReadAsOne: tail, export, verify, doctor, LAST USED
// and receipts see one log, also after the owner has moved its oldest files
// away, which verify and receipts then say.
func TestLogInSeveralFilesIsReadAsOne(t *testing.T) {
	d := newDesk(t, "me")
	d.write("v", canary)
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	for range 3 {
		d.do(0, "get", "A_TOKEN", "--profile", "me")
	}
	s, err := bolt.Open(d.store(), bolt.Options{MaxLog: 1500})
	if err != nil {
		t.Fatal(err)
	}
	for range 60 {
		if err := audit.Append(t.Context(), s, audit.Record{Time: time.Now(), Event: audit.Note, Key: audit.Owner, Via: "cli", Note: "filler"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	older, err := filepath.Glob(filepath.Join(d.store(), "audit-*.jsonl"))
	if err != nil || len(older) < 5 {
		t.Fatalf("%d earlier files, %v", len(older), err)
	}
	out := func(want int, args ...string) string {
		t.Helper()
		exit, stdout, stderr := d.run("", args...)
		if exit != want {
			t.Errorf("%q = %d, want %d\n%s%s", args, exit, want, stdout, stderr)
		}
		return stdout
	}
	whole := strings.Count(out(0, "audit", "export", "--sealed"), "\n")
	if got := out(0, "audit", "verify"); !strings.HasPrefix(got, fmt.Sprintf("ok        %d records, no gap", whole)) {
		t.Errorf("verify of %d lines = %q", whole, got)
	}
	if got := out(0, "audit", "tail", "-n", "1000"); strings.Count(got, "\n") != whole || !strings.Contains(got, "A_TOKEN v1") {
		t.Errorf("tail shows %d lines, want %d", strings.Count(got, "\n"), whole)
	}
	if got := out(0, "identity", "show", "me"); !strings.Contains(got, "last used 20") {
		t.Errorf("identity show = %q", got)
	}
	out(0, "doctor")
	whole++ // its own line

	// The oldest file holds all readings.
	firsts := make([]uint64, len(older))
	for i, path := range older {
		if _, err := fmt.Sscanf(filepath.Base(path), "audit-%d.jsonl", &firsts[i]); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(firsts)
	for _, first := range firsts[:3] {
		name := fmt.Sprintf("audit-%d.jsonl", first)
		if err := os.Rename(filepath.Join(d.store(), name), filepath.Join(t.TempDir(), name)); err != nil {
			t.Fatal(err)
		}
	}
	line := fmt.Sprint(firsts[3] + 1)
	if got := out(8, "audit", "verify"); !strings.Contains(got, "fail      line "+line+" is the first that is here: the files before it were moved away or removed") {
		t.Errorf("verify without its beginning = %q", got)
	}
	if got := out(0, "audit", "verify", "--from", line); !strings.Contains(got, " from line "+line+" on, no gap") {
		t.Errorf("verify --from %s = %q", line, got)
	}
	out(8, "audit", "verify", "--from", fmt.Sprint(firsts[2]+1))
	if got := out(0, "audit", "export", "--sealed"); strings.Count(got, "\n") != whole-int(firsts[3]) {
		t.Errorf("export has %d lines, want %d", strings.Count(got, "\n"), whole-int(firsts[3]))
	}
	out(0, "audit", "tail")
	out(0, "doctor")
	if got := out(0, "identity", "revoke", "me", "--yes", "--json"); !strings.Contains(got, `"complete":false`) {
		t.Errorf("a receipt that lacks the readings says that it is complete: %s", got)
	}
}

// tail -f looks at the file and its size only.
func TestGrowthIsSeenWhenTheLogGoesOnInANewFile(t *testing.T) {
	d := newDesk(t, "me")
	a := &app{now: time.Now, conf: newConfig(os.Getenv)}
	grown, err := a.logGrowth()
	if err != nil {
		t.Fatal(err)
	}
	if grown() {
		t.Error("control: a log that rests has grown")
	}
	path := filepath.Join(d.store(), "audit.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil { // as long as the one before
		t.Fatal(err)
	}
	if !grown() || grown() {
		t.Error("a new file is not noticed once")
	}
}

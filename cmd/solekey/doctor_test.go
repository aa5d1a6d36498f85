package main

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestDoctorChangesNothing compares the data directory before and after. The
// log gains the one line that proves that it can be written.
func TestDoctorChangesNothing(t *testing.T) {
	d := newDesk(t, "me")
	d.write("v", canary)
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	before := d.files()
	d.do(0, "doctor")
	after := d.files()
	log := filepath.Join(d.store(), "audit.jsonl")
	if grown := strings.TrimPrefix(after[log], before[log]); strings.Count(grown, "\n") != 1 || !strings.Contains(grown, `"note":"doctor"`) {
		t.Errorf("the log grew by %q", grown)
	}
	for _, name := range []string{"audit.jsonl", "audit.head", "lock", "lock.queue"} {
		delete(before, filepath.Join(d.store(), name))
		delete(after, filepath.Join(d.store(), name))
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("doctor changed files (-before +after):\n%s", diff)
	}
	if len(before) < 4 {
		t.Errorf("%d files; the test sees nothing", len(before))
	}
}

// files are the files of the home with their contents.
func (d *desk) files() map[string]string {
	d.t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(d.home, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		out[path] = string(b)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// TestDoctorOnDamage breaks the files of a store in many ways. Doctor ends,
// says what it found without a value, and never calls a store sound that does
// not open.
func TestDoctorOnDamage(t *testing.T) {
	d := newDesk(t, "me", "bot")
	d.write("v", canary)
	d.do(0, "put", "A_TOKEN", "--identity", "me", "--file", "v")
	sound := make(map[string][]byte)
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl", "audit.head"} {
		b, err := os.ReadFile(filepath.Join(d.store(), name))
		if err != nil {
			t.Fatal(err)
		}
		sound[name] = b
	}
	repair := func() {
		for name, b := range sound {
			path := filepath.Join(d.store(), name)
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	damage := map[string]func([]byte) []byte{
		"empty": func([]byte) []byte { return nil },
		"half":  func(b []byte) []byte { return b[:len(b)/2] },
		"zeros": func(b []byte) []byte { return make([]byte, len(b)) },
		"noise": func(b []byte) []byte {
			return bytes.Map(func(rune) rune { return rune('!' + rnd.IntN(90)) }, bytes.Repeat([]byte("x"), len(b)))
		},
		"first":  func(b []byte) []byte { return append(make([]byte, min(4096, len(b))), b[min(4096, len(b)):]...) },
		"a byte": func(b []byte) []byte { b[len(b)/3] ^= 0x40; return b },
		"more":   func(b []byte) []byte { return append(b, "garbage\n"...) },
		"many bits": func(b []byte) []byte {
			for range 200 {
				b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			}
			return b
		},
	}
	for name := range sound {
		for how, harm := range damage {
			t.Run(name+" "+how, func(t *testing.T) {
				repair()
				if err := os.WriteFile(filepath.Join(d.store(), name), harm(bytes.Clone(sound[name])), 0o600); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				exit, stdout, stderr := d.run("", "doctor")
				if exit != 0 && exit != exitFindings {
					t.Errorf("doctor = %d, want 0 or %d\n%s%s", exit, exitFindings, stdout, stderr)
				}
				if leak(stdout+stderr) != "" {
					t.Errorf("doctor shows a value:\n%s%s", stdout, stderr)
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("doctor took %v", took)
				}
				if exit == 0 {
					d.do(0, "get", "A_TOKEN", "--profile", "me")
				} else if !strings.Contains(stdout, "fail  ") {
					t.Errorf("exit %d without a fail line:\n%s%s", exit, stdout, stderr)
				}
			})
		}
	}
	repair()
	d.do(0, "doctor")
}

// TestDoctorSeesModes: what was open to others is named, and what is closed
// to its owner.
func TestDoctorSeesModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes mean nothing here")
	}
	d := newDesk(t)
	if err := os.Chmod(d.store(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(d.store(), "vault.cells"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := d.do(0, "doctor")
	for _, want := range []string{"directory mode was 0755, now 0700", "vault.cells was open to others (mode 0644)"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor says\n%s, want %s", out, want)
		}
	}
	if out := d.do(0, "doctor"); strings.Contains(out, "0755") {
		t.Errorf("a second time: %s", out)
	}
}

// TestDoctorClear marks a store as an I/O error does, by the flag in the
// holder record of the file lock (bytes 20 to 23). Everything stops until
// --clear, and doctor without it clears nothing.
func TestDoctorClear(t *testing.T) {
	d := newDesk(t, "me")
	if out := d.do(0, "doctor", "--clear"); !strings.Contains(out, "ok    disk     no failure mark stands") {
		t.Errorf("doctor --clear says\n%s", out)
	}
	for flag, exit := range map[byte]int{1: exitUnavailable, 2: exitUnavailable} {
		f, err := os.OpenFile(filepath.Join(d.store(), "lock"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{flag}, 23); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		d.write("v", canary)
		d.do(exit, "put", "A_TOKEN", "--file", "v")
		for range 2 {
			if out := d.do(exitFindings, "doctor"); !strings.Contains(out, "try: solekey doctor --clear") {
				t.Errorf("with flag %d doctor says\n%s", flag, out)
			}
		}
		d.do(0, "doctor", "--clear")
		d.do(0, "put", "A_TOKEN", "--file", "v")
		d.do(0, "doctor")
	}
}

// TestDoctorNamesStaleKeys: which key in the environment opens nothing, and
// that it is never printed.
func TestDoctorNamesStaleKeys(t *testing.T) {
	d := newDesk(t)
	_, key, _ := d.run("", "identity", "create", "bot", "--print-key")
	t.Setenv(envAPIKey, strings.TrimSpace(key))
	check := func(want string) {
		t.Helper()
		t.Setenv(envAPIKey, strings.TrimSpace(key)) // run scrubs it
		out := d.do(0, "doctor")
		if !strings.Contains(out, want) || strings.Contains(out, strings.TrimSpace(key)) {
			t.Errorf("doctor says\n%s, want %s", out, want)
		}
	}
	check("SOLEKEY_API_KEY is set: every program")
	d.do(0, "identity", "revoke", "bot", "--yes")
	check("SOLEKEY_API_KEY holds a key of an identity that was revoked")
	other := newDesk(t)
	other.do(0, "identity", "create", "bot", "--print-key")
	d = other
	check("SOLEKEY_API_KEY holds a key of another store")
}

func TestDoctorNamesOnlySecrets(t *testing.T) {
	t.Chdir(t.TempDir())
	files := map[string]string{
		".env":       "B_TOKEN=" + canary + "\nA_TOKEN=" + canary + "\nA_TOKEN=" + canary + "\nPORT=1\nC_TOKEN=${A_TOKEN}\n",
		".env.bad":   "A_TOKEN=\"" + canary,
		".env.plain": "PORT=1\n",
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string][]string{".env": {"A_TOKEN", "B_TOKEN"}, ".env.bad": nil, ".env.plain": nil, ".env.absent": nil}
	for name, secrets := range want {
		if diff := cmp.Diff(strings.Join(secrets, " "), strings.Join(secretsIn(name), " ")); diff != "" {
			t.Errorf("secretsIn(%s) (-want +got):\n%s", name, diff)
		}
	}
}

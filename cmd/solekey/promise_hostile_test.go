//go:build unix

package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hostileValue must come out of none of the cases.
const hostileValue = "CANARY-hostile-5e0c"

// newHostile returns a store with a value that the controls can read.
func newHostile(t *testing.T) *world {
	w := newWorld(t)
	w.must("identity", "create", "bot")
	w.put("bot", "TOKEN", hostileValue)
	w.must("get", "TOKEN", "--profile", "bot") // from here on a read commits nothing
	return w
}

// state is what is on disk below a directory: kind, mode, owner and content.
// The lock holds no data and is written by whoever has its turn.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "lock" || d.Name() == "lock.queue" {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		out[name] = fmt.Sprintf("%v %d ", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out[name] += fmt.Sprintf("%d %x", len(b), sha256.Sum256(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var (
	mainLine = regexp.MustCompile(`(?m)^solekey: .{5,}$`)
	tryLine  = regexp.MustCompile(`(?m)^  try: \S`)
)

// refuses runs a command that must fail with one of these codes: clearly,
// without the value, and without a change on disk.
func (w *world) refuses(t *testing.T, codes []int, dir string, s setting, args ...string) {
	t.Helper()
	before := state(t, dir)
	out := w.start(s, args...)
	if !slices.Contains(codes, out.code) || out.stdout != "" {
		t.Errorf("solekey %q: %v, want exit code %v and nothing on stdout", args, out, codes)
	}
	if !mainLine.MatchString(out.stderr) || strings.Count(out.stderr, "\n") > 6 {
		t.Errorf("solekey %q: stderr is not clear: %v", args, out)
	}
	if slices.Contains([]int{exitUsage, exitRefused, exitUnavailable}, out.code) && !tryLine.MatchString(out.stderr) {
		t.Errorf("solekey %q: stderr has no try line: %v", args, out)
	}
	if strings.Contains(out.stdout+out.stderr, hostileValue) {
		t.Errorf("solekey %q gives the value away: %v", args, out)
	}
	if diff := cmp.Diff(before, state(t, dir)); diff != "" {
		t.Errorf("solekey %q changed the disk (-before +after):\n%s", args, diff)
	}
}

// The codes of a refusal.
var (
	usage  = []int{exitUsage}
	broken = []int{exitUnavailable}
)

// withoutAudit is where a refusal may leave its line.
var withoutAudit = []string{"audit.jsonl", "audit.head"}

// unauthorized runs get with a key that is well-formed and opens nothing: the
// log counts it, and nothing else changes.
func (w *world) unauthorized(t *testing.T, file string) {
	t.Helper()
	before := state(t, w.root)
	out := w.run("get", "TOKEN", "--api-key-file", file)
	if out.code != 4 || out.stdout != "" || !tryLine.MatchString(out.stderr) {
		t.Errorf("get with a strange key: %v, want exit code 4 and a try line", out)
	}
	after := state(t, w.root)
	for name := range after {
		if slices.Contains(withoutAudit, filepath.Base(name)) {
			before[name], after[name] = "", ""
		}
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("get with a strange key changed the disk (-before +after):\n%s", diff)
	}
	s := w.serve("--api-key-file", file)
	s.get("TOKEN").wants(t, "get_secret with a strange key", "", "unauthorized")
	if code := s.close(); code != 0 {
		t.Errorf("the server ended with %d", code)
	}
}

// TestBadKeysOpenNothing tries texts that are no key, keys with typing
// errors, and keys of other kinds and stores.
func TestBadKeysOpenNothing(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newHostile(t)
	b, err := os.ReadFile(w.keyFile("bot"))
	if err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(string(b))
	bad := map[string]string{
		"empty": "", "blank": " \n\t\n", "word": "hunter2", "prefix only": "slk1_", "short": key[:len(key)-1], "half": key[:40], "long": key + "a", "twice": key + key, "two lines": key + "\n" + key,
		"wrong prefix": "slx1_" + key[5:], "admin": "sla1_" + key[5:], "enrolment": "sle1_" + key[5:], "recovery": "slr1_" + key[5:], "root": "slroot1_" + key[5:], "upper case": "SLK1_" + key[5:],
		"version 2": "slk2_" + key[5:], "no prefix": key[5:], "quoted": `"` + key + `"`, "assignment": "SOLEKEY_API_KEY=" + key, "blank inside": key[:30] + " " + key[30:], "zero byte": key[:30] + "\x00" + key[31:],
		"byte order mark": "\ufeff" + key, "binary": "\xff\xfe\x00\x01", "large": strings.Repeat("a", 1<<20),
	}
	for range rounds(5, 25, 400) {
		at := 5 + r.IntN(len(key)-5)
		typo := []byte(key)
		for typo[at] == key[at] {
			typo[at] = draw(r, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 1)[0]
		}
		bad[fmt.Sprintf("typing error at %d", at)] = string(typo)
	}
	for range 5 {
		at := 5 + r.IntN(len(key)-6)
		if key[at] != key[at+1] {
			bad[fmt.Sprintf("swap at %d", at)] = key[:at] + key[at+1:at+2] + key[at:at+1] + key[at+2:]
		}
	}
	file := filepath.Join(w.root, "tmp", "bad.key")
	for _, name := range sorted(bad) {
		if err := os.WriteFile(file, []byte(bad[name]), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			w.refuses(t, usage, w.root, setting{}, "get", "TOKEN", "--api-key-file", file)
			if !strings.HasPrefix(name, "typing") {
				w.refuses(t, usage, w.root, setting{}, "mcp", "--api-key-file", file)
				w.refuses(t, usage, w.root, setting{}, "identity", "rotate", "bot", "--print-key", "--api-key-file", file)
			}
		})
	}

	other := newBareWorld(t)
	recovery := filepath.Join(other.root, "tmp", "recovery")
	other.must("init", "--root", "file", "--recovery-file", recovery)
	other.must("identity", "create", "bot")
	for name, from := range map[string]string{"recovery_key": recovery, "key_of_another_store": other.keyFile("bot")} {
		copyFile(t, from, file)
		t.Run(name, func(t *testing.T) { w.unauthorized(t, file) })
	}

	// Control: the key itself opens, with blanks around it too.
	if err := os.WriteFile(file, []byte(" \n"+key+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := w.run("get", "TOKEN", "--api-key-file", file); out.code != 0 || out.stdout != hostileValue {
		t.Errorf("get with the key: %v", out)
	}
}

// TestKeyFilesOfOthersAreRefused puts the right key where others could read
// or replace it, and things that are no files.
func TestKeyFilesOfOthersAreRefused(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	key, err := os.ReadFile(w.keyFile("bot"))
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(w.root, "tmp", "good.key")
	copyFile(t, w.keyFile("bot"), good)
	cases := map[string]func(path string) error{
		"group can read": func(p string) error { return errorsOf(os.WriteFile(p, key, 0o600), os.Chmod(p, 0o640)) },
		"all can read":   func(p string) error { return errorsOf(os.WriteFile(p, key, 0o600), os.Chmod(p, 0o604)) },
		"all can write":  func(p string) error { return errorsOf(os.WriteFile(p, key, 0o600), os.Chmod(p, 0o602)) },
		"symbolic link":  func(p string) error { return os.Symlink(good, p) },
		"dangling link":  func(p string) error { return os.Symlink(filepath.Join(w.root, "nowhere"), p) },
		"directory":      func(p string) error { return os.Mkdir(p, 0o700) },
		"pipe":           func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"device":         func(p string) error { return os.Symlink("/dev/zero", p) },
		"missing":        func(string) error { return nil },
		"file of a stranger": func(p string) error {
			return errorsOf(os.WriteFile(p, key, 0o600), os.Chown(p, 65534, 65534))
		},
	}
	for _, name := range sorted(cases) {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			if name == "file of a stranger" && os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			path := filepath.Join(w.root, "tmp", strings.ReplaceAll(name, " ", "-"))
			if err := cases[name](path); err != nil {
				t.Fatal(err)
			}
			w.refuses(t, usage, w.root, setting{}, "get", "TOKEN", "--api-key-file", path)
			w.refuses(t, usage, w.root, setting{}, "mcp", "--api-key-file", path)
			w.refuses(t, usage, w.root, setting{env: []string{"SOLEKEY_API_KEY_FILE=" + path}}, "get", "TOKEN")
		})
	}
	t.Run("control", func(t *testing.T) {
		if out := w.run("get", "TOKEN", "--api-key-file", good); out.code != 0 || out.stdout != hostileValue {
			t.Errorf("get with a private key file: %v", out)
		}
	})
}

// errorsOf returns the first error.
func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestTwoKeysAtOnceAreRefused gives a key by each pair of sources.
func TestTwoKeysAtOnceAreRefused(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	file := w.keyFile("bot")
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sources := []struct {
		env  string
		args []string
	}{
		{"", []string{"--profile", "bot"}}, {"", []string{"--api-key-file", file}}, {"", []string{"--api-key-fd", "3"}},
		{"SOLEKEY_API_KEY_FILE=" + file, nil}, {"SOLEKEY_API_KEY=" + strings.TrimSpace(string(key)), nil},
	}
	open := func() *os.File {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	with := func(picked ...int) (setting, []string) {
		s := setting{fd3: open()}
		var args []string
		for _, i := range picked {
			args = append(args, sources[i].args...)
			if sources[i].env != "" {
				s.env = append(s.env, sources[i].env)
			}
		}
		return s, args
	}
	for i := range sources {
		for j := range i {
			s, args := with(i, j)
			w.refuses(t, usage, w.root, s, append([]string{"get", "TOKEN"}, args...)...)
			s, args = with(i, j)
			w.refuses(t, usage, w.root, s, append([]string{"mcp"}, args...)...)
		}
		// Control: one of them alone opens.
		s, args := with(i)
		if out := w.start(s, append([]string{"get", "TOKEN"}, args...)...); out.code != 0 || out.stdout != hostileValue {
			t.Errorf("get with source %d alone: %v", i, out)
		}
	}
}

// TestDamagedStoresAreRefused damages, replaces or removes the files of a
// store: commands say so and change nothing, and a server answers
// `unavailable` and lives.
func TestDamagedStoresAreRefused(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newHostile(t)
	other := newHostile(t)
	noise := func(n int) []byte { return []byte(draw(r, "\x00\x01\x7f\x80\xffabc", n)) }
	cut := func(n int64) func(string) error { return func(p string) error { return os.Truncate(p, n) } }
	write := func(b []byte) func(string) error { return func(p string) error { return os.WriteFile(p, b, 0o600) } }
	replace := func(by func(p string) error) func(string) error {
		return func(p string) error { return errorsOf(os.Rename(p, p+".moved"), by(p)) }
	}
	ways := map[string]func(path string) error{
		"emptied":                cut(0),
		"cut to a byte":          cut(1),
		"cut to 5000 bytes":      cut(5000),
		"made of noise":          write(noise(20000)),
		"made of text":           write([]byte(strings.Repeat("this is no store\n", 2000))),
		"made of zeros":          write(make([]byte, 1<<20)),
		"replaced by another's":  nil, // per file
		"replaced by a link":     replace(func(p string) error { return os.Symlink(p+".moved", p) }),
		"replaced by a folder":   replace(func(p string) error { return os.Mkdir(p, 0o700) }),
		"replaced by a pipe":     replace(func(p string) error { return syscall.Mkfifo(p, 0o600) }),
		"missing":                os.Remove,
		"with two names":         func(p string) error { return os.Link(p, p+".second") },
		"owned by somebody else": func(p string) error { return os.Chown(p, 65534, 65534) },
	}
	for _, file := range []string{"vault.db", "vault.cells"} {
		for _, way := range sorted(ways) {
			t.Run(file+"_"+strings.ReplaceAll(way, " ", "_"), func(t *testing.T) {
				if way == "owned by somebody else" && os.Geteuid() != 0 {
					t.Skip("only root can give a file away")
				}
				dir := filepath.Join(t.TempDir(), "store")
				copyTree(t, w.store, dir)
				damage := ways[way]
				if damage == nil {
					damage = func(p string) error { copyFile(t, filepath.Join(other.store, file), p); return nil }
				}
				if err := damage(filepath.Join(dir, file)); err != nil {
					t.Fatal(err)
				}
				w.refuses(t, broken, dir, setting{}, "get", "TOKEN", "--profile", "bot", "--home", dir)
				w.refuses(t, broken, dir, setting{stdin: "x"}, "put", "NEW", "--identity", "bot", "--stdin", "--home", dir)
				s := w.serve("--profile", "bot", "--home", dir)
				for range 2 {
					s.get("TOKEN").wants(t, "get_secret", "", "unavailable")
				}
				if code := s.close(); code != 0 || bytes.Contains(s.stdout.Bytes(), []byte(hostileValue)) {
					t.Errorf("the server ended with %d", code)
				}
			})
		}
	}
	t.Run("control", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "store")
		copyTree(t, w.store, dir)
		if out := w.run("get", "TOKEN", "--profile", "bot", "--home", dir); out.code != 0 || out.stdout != hostileValue {
			t.Errorf("get from a whole copy: %v", out)
		}
	})
}

// TestStrangePlacesAreRefused points the program at directories that are no
// store, or not safe for one.
func TestStrangePlacesAreRefused(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	at := func(name string) string { return filepath.Join(w.root, "tmp", name) }
	for name, build := range map[string]func(path string) error{
		"missing":       func(string) error { return nil },
		"empty":         func(p string) error { return os.Mkdir(p, 0o700) },
		"a file":        func(p string) error { return os.WriteFile(p, []byte("text"), 0o600) },
		"a pipe":        func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"dangling link": func(p string) error { return os.Symlink(at("nowhere"), p) },
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			path := at(strings.ReplaceAll(name, " ", "-"))
			if err := build(path); err != nil {
				t.Fatal(err)
			}
			s := setting{env: []string{"SOLEKEY_HOME=" + path}} // a profile would name its own
			w.refuses(t, broken, w.root, s, "get", "TOKEN", "--api-key-file", w.keyFile("bot"))
			w.refuses(t, broken, w.root, s, "identity", "list")
			w.refuses(t, broken, w.root, setting{}, "list", "--identity", "bot", "--home", path)
			server := w.serveWith(s, "--api-key-file", w.keyFile("bot"))
			server.get("TOKEN").wants(t, "get_secret", "", "unavailable")
			if code := server.close(); code != 0 {
				t.Errorf("the server ended with %d", code)
			}
		})
	}
	t.Run("directory_of_a_stranger", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give a directory away")
		}
		dir := at("strange")
		copyTree(t, w.store, dir)
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		w.refuses(t, broken, dir, setting{}, "get", "TOKEN", "--profile", "bot", "--home", dir)
	})
	t.Run("no_home", func(t *testing.T) {
		s := setting{env: []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "SOLEKEY_HOME"}}
		w.refuses(t, usage, w.root, s, "identity", "list")
		w.refuses(t, usage, w.root, s, "init", "--no-recovery")
		w.refuses(t, usage, w.root, s, "get", "TOKEN", "--profile", "bot")
		w.refuses(t, usage, w.root, s, "mcp", "--profile", "bot")
	})
	// Control: a link to the store, and the store itself, are places.
	t.Run("control", func(t *testing.T) {
		link := at("link")
		if err := os.Symlink(w.store, link); err != nil {
			t.Fatal(err)
		}
		for _, home := range []string{w.store, link, w.store + "/../solekey/"} {
			out := w.start(setting{env: []string{"SOLEKEY_HOME=" + home}}, "get", "TOKEN", "--api-key-file", w.keyFile("bot"))
			if out.code != 0 || out.stdout != hostileValue {
				t.Errorf("get from %s: %v", home, out)
			}
		}
		out := w.start(setting{}, "get", "TOKEN", "--profile", "bot", "--home", filepath.Join(w.root, "nowhere"))
		if out.code == 0 {
			t.Errorf("get from nowhere: %v", out)
		}
	})
}

// TestModesAreTightened opens the directory and the files of a store to
// others: the next call closes them again before it serves.
func TestModesAreTightened(t *testing.T) {
	t.Parallel()
	w := newHostile(t)
	for _, name := range []string{"", "vault.db", "vault.cells", "audit.jsonl"} {
		path := filepath.Join(w.store, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, more := range []os.FileMode{0o044, 0o066, 0o077} {
			if err := os.Chmod(path, info.Mode().Perm()|more); err != nil {
				t.Fatal(err)
			}
			out := w.run("get", "TOKEN", "--profile", "bot")
			after, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if after.Mode() != info.Mode() || (out.code == 0) != (out.stdout == hostileValue) {
				t.Errorf("%q with %v more has mode %v after %v, want %v", name, more, after.Mode(), out, info.Mode())
			}
		}
	}
	// Control: nobody tightens what is not of the store.
	path := filepath.Join(w.store, "notes.txt")
	if err := errorsOf(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	w.must("get", "TOKEN", "--profile", "bot")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("a file beside the store has mode %v, %v, want -rw-r--r--", info.Mode(), err)
	}
}

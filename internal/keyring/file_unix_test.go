//go:build unix

package keyring_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/solekey/solekey/internal/keyring"
)

func TestFilesAreForTheOwnerAlone(t *testing.T) {
	r, dir := files(t)
	src := mustSet(t, r, keyring.Profile, "me", canary, keyring.File)
	for path, want := range map[string]fs.FileMode{src.Path: 0o600, dir: 0o700, filepath.Dir(src.Path): 0o700} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v, want %v", path, fi.Mode().Perm(), err, want)
		}
	}
}

func TestExposedFileIsRefused(t *testing.T) {
	r, dir := files(t)
	src := mustSet(t, r, keyring.Profile, "me", canary, keyring.File)
	link, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	if err := errors.Join(os.Symlink(src.Path, link), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	read := func(path string) error { _, err := keyring.ReadPrivate(path, 100); return err }
	if err := read(src.Path); err != nil {
		t.Fatalf("control: a private file is refused: %v", err)
	}
	refused := func(what, path, hint string) {
		t.Helper()
		err := read(path)
		if !errors.Is(err, keyring.ErrNotPrivate) || !strings.Contains(err.Error(), hint) || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: ReadPrivate = %v, want %v with %q", what, err, keyring.ErrNotPrivate, hint)
		}
	}
	refused("link", link, "symbolic link")
	refused("pipe", pipe, "not a regular file")
	refused("directory", dir, "not a regular file")
	refused("device", os.DevNull, "not a regular file")
	for _, mode := range []fs.FileMode{0o604, 0o640, 0o644, 0o620, 0o666} {
		if err := os.Chmod(src.Path, mode); err != nil {
			t.Fatal(err)
		}
		refused(mode.String(), src.Path, "chmod 600 "+src.Path)
		if _, _, err := r.Get(keyring.Profile, "me"); !errors.Is(err, keyring.ErrNotPrivate) {
			t.Errorf("Get of a file with mode %v = %v", mode, err)
		}
	}
	os.Chmod(src.Path, 0o600)
	if os.Geteuid() == 0 {
		if err := os.Chown(src.Path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refused("foreign", src.Path, "another user")
		os.Chown(src.Path, 0, 0)
	}
	if _, err := keyring.ReadPrivate(src.Path, int64(len(canary))-1); !errors.Is(err, keyring.ErrTooLarge) {
		t.Errorf("ReadPrivate over the limit = %v, want %v", err, keyring.ErrTooLarge)
	}
	if _, err := keyring.ReadPrivate(src.Path+"x", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadPrivate of nothing = %v, want %v", err, fs.ErrNotExist)
	}
}

func TestOpenDirectoryIsRefused(t *testing.T) {
	r, dir := files(t)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Set(keyring.Root, someID, canary, keyring.File); !errors.Is(err, keyring.ErrNotPrivate) {
		t.Errorf("Set in a directory of all = %v, want %v", err, keyring.ErrNotPrivate)
	}
}

// TestSetReplacesALink checks that a planted link is replaced, not followed.
func TestSetReplacesALink(t *testing.T) {
	r, dir := files(t)
	victim := filepath.Join(t.TempDir(), "victim")
	path := filepath.Join(dir, "root-"+someID+".key")
	if err := errors.Join(os.WriteFile(victim, []byte("mine"), 0o600), os.Mkdir(dir, 0o700), os.Symlink(victim, path)); err != nil {
		t.Fatal(err)
	}
	mustSet(t, r, keyring.Root, someID, canary, keyring.File)
	if b, _ := os.ReadFile(victim); string(b) != "mine" {
		t.Error("Set wrote through a link")
	}
	wantGet(t, r, keyring.Root, someID, canary, path)
}

// TestMuteBusDoesNotHang asks the real library, on a bus that accepts
// connections and never answers.
func TestMuteBusDoesNotHang(t *testing.T) {
	quiet(t)
	bus := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", bus)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+bus)
	var lines []string
	r := keyring.Open(t.TempDir(), keyring.Options{Log: func(s string) { lines = append(lines, s) }})
	start := time.Now()
	_, _, err = r.Get(keyring.Profile, "me")
	if d := time.Since(start); !errors.Is(err, keyring.ErrNone) || d > 4*time.Second {
		t.Errorf("Get = %v after %v, want %v after 2 s", err, d, keyring.ErrNone)
	}
	start = time.Now()
	src := mustSet(t, r, keyring.Profile, "me", canary, keyring.Auto)
	wantGet(t, r, keyring.Profile, "me", canary, src.Path)
	if d := time.Since(start); d > time.Second || len(lines) == 0 {
		t.Errorf("later calls took %v, lines %q", d, lines)
	}
}

func TestReadOwnTakesWhatNobodyElseCanChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o644: true, 0o620: false, 0o602: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if b, err := keyring.ReadOwn(path, 4); (err == nil && string(b) == "text") != ok || !ok && !errors.Is(err, keyring.ErrNotPrivate) {
			t.Errorf("ReadOwn of a file with mode %o = %q, %v", mode, b, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.ReadOwn(path, 3); !errors.Is(err, keyring.ErrTooLarge) {
		t.Errorf("ReadOwn beyond its limit = %v, want %v", err, keyring.ErrTooLarge)
	}
}

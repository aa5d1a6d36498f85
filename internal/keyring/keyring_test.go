package keyring_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
)

const canary = "CANARY-93be17c0"

var someID = strings.Repeat("0a", 16)

// quiet makes the test independent of the session it runs in.
func quiet(t testing.TB) {
	for _, name := range []string{"DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "CREDENTIALS_DIRECTORY"} {
		t.Setenv(name, "")
	}
}

func files(t *testing.T) (*keyring.Ring, string) {
	t.Helper()
	quiet(t)
	dir := filepath.Join(t.TempDir(), "config")
	return keyring.Open(dir, keyring.Options{NoOS: true}), dir
}

func mustSet(t *testing.T, r *keyring.Ring, k keyring.Kind, name, text string, where keyring.Where) keyring.Source {
	t.Helper()
	src, err := r.Set(k, name, text, where)
	if err != nil {
		t.Fatalf("Set(%s, %s) = %v", k, name, err)
	}
	return src
}

// wantGet checks the value and its source; "" wants ErrNone.
func wantGet(t *testing.T, r *keyring.Ring, k keyring.Kind, name, want, from string) {
	t.Helper()
	text, src, err := r.Get(k, name)
	if want == "" {
		if !errors.Is(err, keyring.ErrNone) || text != "" {
			t.Errorf("Get(%s, %s) = %q, %v, want %v", k, name, text, err, keyring.ErrNone)
		}
		return
	}
	if err != nil || text != want || src.String() != from {
		t.Errorf("Get(%s, %s) = %q from %q, %v, want %q from %q", k, name, text, src, err, want, from)
	}
}

func TestValueComesBackUnchanged(t *testing.T) {
	r, dir := files(t)
	root, profile := filepath.Join(dir, "root-"+someID+".key"), filepath.Join(dir, "profiles", "me.key")
	wantGet(t, r, keyring.Root, someID, "", "")
	if src := mustSet(t, r, keyring.Root, someID, "0 "+canary+"\n1 x\n", keyring.Auto); src.Where != keyring.File || src.Path != root {
		t.Errorf("Set = %+v, want %s", src, root)
	}
	mustSet(t, r, keyring.Profile, "me", canary, keyring.File)
	mustSet(t, r, keyring.Profile, "me", canary+"2", keyring.File)
	wantGet(t, r, keyring.Root, someID, "0 "+canary+"\n1 x\n", root)
	wantGet(t, r, keyring.Profile, "me", canary+"2", profile)
	if b, err := os.ReadFile(profile); err != nil || string(b) != canary+"2" {
		t.Errorf("file = %q, %v: want nothing but the value", b, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", ".new*")); len(left) > 0 {
		t.Errorf("temporary files stay: %v", left)
	}
	for _, k := range []struct {
		kind keyring.Kind
		name string
	}{{keyring.Root, someID}, {keyring.Profile, "me"}} {
		if err := r.Delete(k.kind, k.name); err != nil {
			t.Errorf("Delete = %v", err)
		}
		wantGet(t, r, k.kind, k.name, "", "")
		if err := r.Delete(k.kind, k.name); !errors.Is(err, keyring.ErrNone) {
			t.Errorf("second Delete = %v, want %v", err, keyring.ErrNone)
		}
	}
}

func TestSecondStoreKeepsTheFirstRoot(t *testing.T) {
	r, _ := files(t)
	other := identity.NewID().String()
	a := mustSet(t, r, keyring.Root, someID, "first", keyring.File)
	mustSet(t, r, keyring.Root, other, "second", keyring.File)
	wantGet(t, r, keyring.Root, someID, "first", a.String())
}

func TestNamesStayInsideTheDirectory(t *testing.T) {
	r, dir := files(t)
	for _, c := range []struct {
		kind keyring.Kind
		name string
	}{
		{keyring.Profile, "../root"},
		{keyring.Profile, ""},
		{keyring.Profile, "a/b"},
		{keyring.Root, "me"},
		{keyring.Root, strings.ToUpper(someID)},
		{"other", "me"},
	} {
		if _, err := r.Set(c.kind, c.name, canary, keyring.File); err == nil {
			t.Errorf("Set(%q, %q) = nil", c.kind, c.name)
		}
	}
	if _, err := r.Set(keyring.Profile, "me", "", keyring.File); err == nil {
		t.Error("Set of nothing = nil")
	}
	if _, err := r.Set(keyring.Profile, "me", strings.Repeat("x", keyring.MaxText+1), keyring.File); !errors.Is(err, keyring.ErrTooLarge) {
		t.Errorf("Set of too much = %v, want %v", err, keyring.ErrTooLarge)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused Set made the directory")
	}
}

func TestCredentialComesFirst(t *testing.T) {
	r, _ := files(t)
	mustSet(t, r, keyring.Root, someID, "from the file", keyring.File)
	creds := t.TempDir()
	path := filepath.Join(creds, "solekey-root")
	if err := os.WriteFile(path, []byte("from systemd"), 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", creds)
	wantGet(t, r, keyring.Root, someID, "from systemd", "systemd credential "+path)
	wantGet(t, r, keyring.Profile, "me", "", "")
	if _, err := r.Set(keyring.Root, someID, canary, keyring.Credential); err == nil {
		t.Error("Set of a credential = nil")
	}
}

// withFake returns a ring on an OS keyring in memory.
func withFake(t *testing.T, f *keyring.Fake) (r *keyring.Ring, dir string, lines *[]string) {
	t.Helper()
	quiet(t)
	dir = t.TempDir()
	lines = new([]string)
	r = keyring.Open(dir, keyring.Options{Log: func(s string) { *lines = append(*lines, s) }})
	f.Use(r, 100*time.Millisecond)
	return r, dir, lines
}

func TestValueRestsInOnePlace(t *testing.T) {
	f := new(keyring.Fake)
	r, dir, _ := withFake(t, f)
	file := filepath.Join(dir, "profiles", "me.key")
	mustSet(t, r, keyring.Profile, "me", "one", keyring.Auto)
	wantGet(t, r, keyring.Profile, "me", "one", "OS keyring")
	if f.Value("profile:me") != "one" {
		t.Error("the account is not profile:me")
	}
	mustSet(t, r, keyring.Profile, "me", "two", keyring.File)
	wantGet(t, r, keyring.Profile, "me", "two", file)
	if f.Value("profile:me") != "" {
		t.Error("a copy stays in the OS keyring")
	}
	mustSet(t, r, keyring.Profile, "me", "three", keyring.OS)
	wantGet(t, r, keyring.Profile, "me", "three", "OS keyring")
	if _, err := os.Stat(file); err == nil {
		t.Error("a copy stays in the file")
	}
	if err := r.Delete(keyring.Profile, "me"); err != nil {
		t.Errorf("Delete = %v", err)
	}
	wantGet(t, r, keyring.Profile, "me", "", "")
}

func TestLargeValueFallsToAFile(t *testing.T) {
	r, _, lines := withFake(t, &keyring.Fake{Limit: 10})
	text := strings.Repeat(canary, 3)
	if src := mustSet(t, r, keyring.Root, someID, text, keyring.Auto); src.Where != keyring.File {
		t.Errorf("Set = %v, want a file", src)
	}
	if _, err := r.Set(keyring.Root, someID, text, keyring.OS); !errors.Is(err, keyring.ErrTooLarge) {
		t.Errorf("Set into the OS keyring = %v, want %v", err, keyring.ErrTooLarge)
	}
	if len(*lines) != 1 {
		t.Errorf("lines = %q, want one", *lines)
	}
}

func TestErrorsAndLinesHideTheValue(t *testing.T) {
	f := &keyring.Fake{Err: errors.New("bus broken")}
	r, _, lines := withFake(t, f)
	_, err := r.Set(keyring.Profile, "me", canary, keyring.OS)
	if !errors.Is(err, keyring.ErrUnavailable) {
		t.Errorf("Set = %v, want %v", err, keyring.ErrUnavailable)
	}
	mustSet(t, r, keyring.Profile, "me", canary, keyring.Auto)
	for _, s := range append(*lines, err.Error()) {
		if strings.Contains(s, canary) {
			t.Errorf("%q contains the value", strings.ReplaceAll(s, canary, "CANARY"))
		}
	}
	_, _, err = r.Get(keyring.Profile, "other")
	if !errors.Is(err, keyring.ErrNone) || !strings.Contains(err.Error(), "bus broken") {
		t.Errorf("Get = %v, want ErrNone and the keyring's reason", err)
	}
}

func TestStuckKeyringIsAskedOnce(t *testing.T) {
	f := &keyring.Fake{Hang: make(chan struct{})}
	r, _, lines := withFake(t, f)
	start := time.Now()
	src := mustSet(t, r, keyring.Profile, "me", canary, keyring.Auto)
	if d := time.Since(start); src.Where != keyring.File || d > time.Second || len(*lines) == 0 {
		t.Errorf("Set = %v after %v, lines %q", src, d, *lines)
	}
	wantGet(t, r, keyring.Profile, "me", canary, src.Path)
	close(f.Hang) // the late write is taken back
	for end := time.Now().Add(5 * time.Second); f.Count() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the late write is not taken back")
		}
	}
	if got := f.Value("profile:me"); got != "" {
		t.Error("a late copy stays in the OS keyring")
	}
}

func TestNoBusIsNotAsked(t *testing.T) {
	quiet(t)
	r := keyring.Open(t.TempDir(), keyring.Options{})
	wantGet(t, r, keyring.Profile, "me", "", "")
	if src := mustSet(t, r, keyring.Profile, "me", canary, keyring.Auto); src.Where != keyring.File {
		t.Skip("this system has a keyring without a bus")
	}
}

func BenchmarkGetFile(b *testing.B) {
	quiet(b)
	r := keyring.Open(b.TempDir(), keyring.Options{})
	if _, err := r.Set(keyring.Profile, "me", canary, keyring.File); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := r.Get(keyring.Profile, "me"); err != nil {
			b.Fatal(err)
		}
	}
}

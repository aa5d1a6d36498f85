package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const value = "EXAMPLE-not-a-real-key"

// TestSession plays the example against the real program: a store, an
// identity, one value, and a client that lists and reads it. The value shows
// with -show and is masked without.
func TestSession(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program")
	}
	home := t.TempDir()
	program := filepath.Join(home, "solekey.exe")
	do(t, "", "go", "build", "-o", program, "github.com/solekey/solekey/cmd/solekey")
	t.Setenv("HOME", home)
	t.Setenv("LOCALAPPDATA", home)
	t.Setenv("SOLEKEY_NO_KEYRING", "1")
	for _, name := range []string{"XDG_DATA_HOME", "XDG_CONFIG_HOME", "SOLEKEY_HOME", "SOLEKEY_API_KEY", "SOLEKEY_API_KEY_FILE"} {
		t.Setenv(name, "")
	}
	do(t, "", program, "init", "--no-recovery")
	do(t, "", program, "identity", "create", "me")
	do(t, value, program, "put", "WEATHER_API_KEY", "--stdin")

	masked := session(t, "-solekey", program)
	for _, want := range []string{"server: solekey ", "tool:   get_secret\n", "label:  WEATHER_API_KEY secret reveal\n", `"value":"******** (-show prints it)"`} {
		if !strings.Contains(masked, want) {
			t.Errorf("the session shows\n%s, want %s", masked, want)
		}
	}
	if strings.Contains(masked, value) {
		t.Errorf("the value is not masked:\n%s", masked)
	}
	if shown := session(t, "-solekey", program, "-show", "WEATHER_API_KEY"); !strings.Contains(shown, value) {
		t.Errorf("-show does not show the value:\n%s", shown)
	}
	var out bytes.Buffer
	if err := run([]string{"-solekey", program, "NO_SUCH_LABEL"}, &out, &out); err == nil || !strings.Contains(err.Error(), "No label NO_SUCH_LABEL for this key.") {
		t.Errorf("an absent label gives %v", err)
	}
}

func do(t *testing.T, stdin, program string, args ...string) {
	t.Helper()
	c := exec.Command(program, args...)
	c.Stdin = strings.NewReader(stdin)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}

func session(t *testing.T, args ...string) string {
	t.Helper()
	var out, talk bytes.Buffer
	if err := run(args, &out, &talk); err != nil {
		t.Fatalf("session: %v\n%s%s", err, out.String(), talk.String())
	}
	return out.String()
}

// TestClientEntries keeps the entries for clients well formed: each starts
// the server with the profile that its file is named for, and holds no key.
func TestClientEntries(t *testing.T) {
	files, err := filepath.Glob("../clients/*.*")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		client := strings.TrimSuffix(name, filepath.Ext(name))
		switch filepath.Ext(name) {
		case ".json":
			if !json.Valid(b) {
				t.Errorf("%s is not JSON", name)
			}
		case ".toml":
			if !strings.HasPrefix(string(b), "[mcp_servers.solekey]\n") {
				t.Errorf("%s has another table", name)
			}
		default:
			continue
		}
		n++
		if want := `["mcp", "--profile", "` + client + `"]`; !strings.Contains(string(b), want) {
			t.Errorf("%s does not start the server with %s", name, want)
		}
		if strings.Contains(string(b), "slk1_") {
			t.Errorf("%s holds a key", name)
		}
	}
	if n != 8 {
		t.Errorf("%d entries, want 8", n)
	}
}

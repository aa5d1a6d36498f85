//go:build unix

package keyring_test

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/solekey/solekey/internal/keyring"
)

const busChildEnv = "SOLEKEY_TEST_BUS_CHILD"

// TestBusWithoutKeyringFallsToAFile asks the real library on a real bus that
// has no secret service, as on a server with a user session. It runs in a
// process of its own, since the library keeps one connection for ever.
func TestBusWithoutKeyringFallsToAFile(t *testing.T) {
	if os.Getenv(busChildEnv) != "" {
		askRealBus(t)
		return
	}
	daemon, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestBusWithoutKeyringFallsToAFile$")
	cmd.Env = append(os.Environ(), busChildEnv+"=1", "DBUS_SESSION_BUS_ADDRESS="+startBus(t, daemon))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("child: %v\n%s", err, out)
	}
}

// startBus starts a bus for this test and returns its address.
func startBus(t *testing.T, daemon string) string {
	t.Helper()
	cmd := exec.Command(daemon, "--session", "--nofork", "--nopidfile", "--print-address", "--address=unix:dir="+t.TempDir())
	cmd.Env = append(os.Environ(), "XDG_DATA_DIRS="+t.TempDir(), "XDG_DATA_HOME="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Skip("dbus-daemon does not start: ", err)
	}
	return strings.TrimSpace(address)
}

func askRealBus(t *testing.T) {
	var lines []string
	r := keyring.Open(t.TempDir(), keyring.Options{Log: func(s string) { lines = append(lines, s) }})
	start := time.Now()
	src := mustSet(t, r, keyring.Profile, "me", canary, keyring.Auto)
	if src.Where != keyring.File || len(lines) == 0 || strings.Contains(strings.Join(lines, ""), canary) {
		t.Errorf("Set = %v, lines %q", src, lines)
	}
	wantGet(t, r, keyring.Profile, "me", canary, src.Path)
	if _, err := r.Set(keyring.Profile, "me", canary, keyring.OS); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("Set into the OS keyring = %v", err)
	}
	t.Logf("%v: %q", time.Since(start), lines)
}

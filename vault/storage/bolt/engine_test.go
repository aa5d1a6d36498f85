package bolt_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
	"github.com/solekey/solekey/vault/storage/enginetest"
)

const childEnv = "SOLEKEY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	if err := runChild(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runChild is what this test binary does as a child process.
func runChild(args []string) error {
	if len(args) == 2 && args[0] == "create" {
		s, err := bolt.Create(args[1], bolt.Options{})
		if err != nil {
			return err
		}
		return s.Close()
	}
	if len(args) == 3 && args[0] == "limit" {
		size, err := strconv.ParseUint(args[2], 10, 64)
		if err != nil {
			return err
		}
		return limited(args[1], size, os.Stdout)
	}
	if len(args) == 3 && args[0] == "append" {
		return appendChild(args[1], args[2], os.Stdout)
	}
	if len(args) == 4 && args[0] == "damage" {
		return examineAll(args[1], args[2], args[3], os.Stdin, os.Stdout)
	}
	if len(args) == 3 && args[0] == "power" {
		return powerChild(args[1], args[2], os.Stdout)
	}
	return enginetest.Child(args, os.Stdin, os.Stdout, reopen)
}

// patient returns options that wait for a turn as long as only a hang does, so that a busy
// machine fails no test.
func patient() bolt.Options { return bolt.Options{TurnTimeout: 30 * time.Second} }

func reopen(place string) (storage.Backend, error) { return bolt.Open(place, patient()) }

// start runs this test binary as a child process.
func start(t *testing.T, args ...string) *enginetest.Process {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), childEnv+"=1", "GORACE=atexit_sleep_ms=0")
	if args[0] != "create" && args[0] != "power" { // of two creators one complains, and who is cut off
		cmd.Stderr = os.Stderr
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &enginetest.Process{In: in, Out: out, Kill: cmd.Process.Kill, Wait: cmd.Wait}
}

func TestContract(t *testing.T) {
	enginetest.Run(t, enginetest.Harness{
		Open: func(t *testing.T) (storage.Backend, string) {
			s, dir := create(t, patient())
			return s, dir
		},
		Reopen: reopen,
		Proc:   start,
	})
}

// create makes a store that is closed when the test ends.
func create(tb testing.TB, o bolt.Options) (*bolt.Store, string) {
	tb.Helper()
	dir := tb.TempDir()
	s, err := bolt.Create(dir, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	return s, dir
}

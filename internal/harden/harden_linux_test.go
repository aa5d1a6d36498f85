package harden_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/solekey/solekey/internal/harden"
)

const (
	childEnv = "SOLEKEY_TEST_HARDEN_CHILD"
	canary   = "CANARY-7c1f44a09d"
)

// TestChild is the body of the child process: it does what each line of its
// standard input says, and answers each with one line.
func TestChild(t *testing.T) {
	if os.Getenv(childEnv) == "" {
		t.Skip("run by the other tests")
	}
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		fmt.Println("answer", obey(s.Text()))
	}
}

// held keeps what the order "hold" made in memory.
var held []byte

func obey(order string) any {
	if begins, ok := strings.CutPrefix(order, "hold "); ok {
		held = heldValue(begins)
		return nil
	}
	switch order {
	case "unset":
		return os.Unsetenv("CONTROL_KEY")
	case "scrub":
		return harden.ScrubEnv("SECRET_KEY", "SECRET_KEY_2", "ABSENT")
	case "get":
		return os.Getenv("SECRET_KEY") + os.Getenv("SECRET_KEY_2") + ";" + os.Getenv("SECRET_KEY_20")
	case "quiet":
		_, ok := harden.Quiet() // until the end of the process
		return ok
	case "limit up", "limit down":
		return limitCores(order == "limit up")
	case "undump":
		return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	case "protect":
		return harden.Process()
	case "limits":
		dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		var core unix.Rlimit
		err := unix.Getrlimit(unix.RLIMIT_CORE, &core)
		return fmt.Sprint(dumpable, core.Cur, core.Max, err)
	}
	return "unknown order"
}

type child struct {
	t   *testing.T
	pid int
	in  io.Writer
	out *bufio.Scanner
}

func start(t *testing.T) *child {
	t.Helper()
	return startIn(t, "")
}

// startIn starts a child in a directory, where what it says at its end is the
// file said.
func startIn(t *testing.T, dir string, env ...string) *child {
	t.Helper()
	said := os.Stderr
	if dir != "" {
		var err error
		if said, err = os.Create(filepath.Join(dir, "said")); err != nil {
			t.Fatal(err)
		}
		defer said.Close()
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	orders, in, err1 := os.Pipe()
	out, answers, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	// os/exec would drop the hidden second SECRET_KEY.
	p, err := os.StartProcess(program, []string{program, "-test.run=^TestChild$"}, &os.ProcAttr{
		Dir: dir,
		Env: append(append(os.Environ(), env...), childEnv+"=1", "CONTROL_KEY="+canary+"-control",
			"SECRET_KEY="+canary+"-one", "SECRET_KEY_2="+canary+"-two", "SECRET_KEY_20=kept", "SECRET_KEY="+canary+"-hidden"),
		Files: []*os.File{orders, answers, said},
	})
	orders.Close()
	answers.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		p.Kill()
		p.Wait()
		out.Close()
	})
	return &child{t, p.Pid, in, bufio.NewScanner(out)}
}

// do gives an order and returns the answer.
func (c *child) do(order string) string {
	c.t.Helper()
	fmt.Fprintln(c.in, order)
	for c.out.Scan() {
		if answer, ok := strings.CutPrefix(c.out.Text(), "answer "); ok {
			return answer
		}
	}
	c.t.Fatalf("child ended at %q", order)
	return ""
}

// block reads the child's environment block as another process sees it.
func (c *child) block() []byte {
	c.t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/environ")
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

func TestScrubEnvEmptiesTheBlock(t *testing.T) {
	c := start(t)
	c.do("get") // the child runs its own code
	for _, s := range []string{"-control", "-one", "-two", "-hidden"} {
		if !bytes.Contains(c.block(), []byte(canary+s)) {
			t.Fatalf("environ does not show %s at the start: the test does not bite", s)
		}
	}
	if got := c.do("unset"); got != "<nil>" {
		t.Fatal(got)
	}
	if !bytes.Contains(c.block(), []byte(canary+"-control")) {
		t.Error("control: os.Unsetenv alone empties the block")
	}
	if got := c.do("scrub"); got != "true" {
		t.Errorf("ScrubEnv = %s, want true", got)
	}
	b := c.block()
	for _, s := range []string{"-one", "-two", "-hidden", "SECRET_KEY=", "SECRET_KEY_2="} {
		if bytes.Contains(b, []byte(s)) {
			t.Errorf("environ still shows %s", s)
		}
	}
	if !bytes.Contains(b, []byte("SECRET_KEY_20=kept")) || !bytes.Contains(b, []byte(childEnv+"=1")) {
		t.Error("ScrubEnv touched other variables")
	}
	if got := c.do("get"); got != ";kept" {
		t.Errorf("variables after ScrubEnv = %q", got)
	}
}

func TestProcessForbidsCoresAndTracing(t *testing.T) {
	c := start(t)
	if got := c.do("limits"); strings.HasPrefix(got, "0 ") {
		t.Fatalf("limits at the start = %s: the test does not bite", got)
	}
	if got := c.do("scrub"); got != "true" {
		t.Errorf("ScrubEnv = %s, want true", got)
	}
	if got := c.do("protect"); got != "<nil>" {
		t.Errorf("Process = %s", got)
	}
	if got := c.do("limits"); got != "0 0 0 <nil>" {
		t.Errorf("dumpable, core limits = %s, want 0 0 0", got)
	}
	_, err := os.ReadFile("/proc/" + strconv.Itoa(c.pid) + "/environ")
	if os.Geteuid() != 0 && !errors.Is(err, fs.ErrPermission) {
		t.Errorf("reading environ of a protected process = %v, want %v", err, fs.ErrPermission)
	}
}

func TestQuietRefusesCores(t *testing.T) {
	for value, want := range map[string]string{"": "true", "single": "true", "all": "true", "crash": "false", "wer": "false"} {
		t.Setenv("GOTRACEBACK", value)
		if got := start(t).do("quiet"); got != want {
			t.Errorf("Quiet with GOTRACEBACK=%s = %s, want %s", value, got, want)
		}
	}
}

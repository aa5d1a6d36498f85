package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The promise tests look at the program from outside: they build it, give it
// a home of its own, and believe only what it prints and what it leaves on
// disk. Each has a control: the same check on a case in which it must fail.
//
// SOLEKEY_SOAK=1 makes them longer, -short makes them shorter.

// program builds the binary once per test process, into the directory that
// TestMain removes at the end.
var program = sync.OnceValues(func() (string, error) {
	script, err := exec.LookPath("solekey")
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(filepath.Dir(script)), "built", filepath.Base(script))
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return path, nil
})

func soaking() bool { return os.Getenv("SOLEKEY_SOAK") != "" && os.Getenv("SOLEKEY_SOAK") != "0" }

// rounds picks how often something is repeated.
func rounds(short, usual, soak int) int {
	switch {
	case soaking():
		return soak
	case testing.Short():
		return short
	}
	return usual
}

// world is one machine: a home with a store.
type world struct {
	t     *testing.T
	bin   string
	root  string // every directory that a process may write to is below
	store string // data directory
	conf  string // config directory
	env   []string
}

// newWorld returns a world with an empty store.
func newWorld(t *testing.T) *world {
	w := newBareWorld(t)
	w.must("init", "--root", "file", "--no-recovery")
	return w
}

// newBareWorld returns a world without a store.
func newBareWorld(t *testing.T) *world {
	t.Helper()
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, bin: bin, root: t.TempDir()}
	w.store, w.conf = filepath.Join(w.root, "data", "solekey"), filepath.Join(w.root, "config", "solekey")
	if runtime.GOOS == "windows" {
		w.conf = filepath.Join(w.root, "local", "solekey", "config")
	}
	for _, d := range []string{"home", "data", "config", "local", "cache", "state", "run", "tmp"} {
		if err := os.Mkdir(filepath.Join(w.root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	at := func(d string) string { return filepath.Join(w.root, d) }
	w.env = []string{
		"HOME=" + at("home"), "XDG_DATA_HOME=" + at("data"), "XDG_CONFIG_HOME=" + at("config"), "XDG_CACHE_HOME=" + at("cache"),
		"XDG_STATE_HOME=" + at("state"), "XDG_RUNTIME_DIR=" + at("run"), "LOCALAPPDATA=" + at("local"), "TMPDIR=" + at("tmp"), "TEMP=" + at("tmp"),
		"SOLEKEY_HOME=" + w.store, "SOLEKEY_NO_KEYRING=1", "PATH=" + os.Getenv("PATH"), "SYSTEMROOT=" + os.Getenv("SYSTEMROOT"),
	}
	return w
}

// keyFile is where the key of a profile rests.
func (w *world) keyFile(profile string) string {
	return filepath.Join(w.conf, "profiles", profile+".key")
}

// setting is how a process is started; the zero value is right.
type setting struct {
	stdin string
	env   []string // added to the world's; NAME without = takes it away
	fd3   *os.File
	dir   string
	shell string // run by sh before the program, such as a ulimit
}

// command prepares a process.
func (w *world) command(ctx context.Context, s setting, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.bin, args...)
	if s.shell != "" {
		cmd = exec.CommandContext(ctx, "sh", append([]string{"-c", s.shell + `; exec "$0" "$@"`, w.bin}, args...)...)
	}
	cmd.Env = slices.Clone(w.env)
	for _, e := range s.env {
		name, _, set := strings.Cut(e, "=")
		cmd.Env = slices.DeleteFunc(cmd.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		if set {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Dir = w.root
	if s.dir != "" {
		cmd.Dir = s.dir
	}
	if s.fd3 != nil {
		cmd.ExtraFiles = []*os.File{s.fd3}
	}
	cmd.Stdin = strings.NewReader(s.stdin)
	return cmd
}

// outcome is what a finished process left.
type outcome struct {
	code           int
	stdout, stderr string
}

func (o outcome) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", o.code, o.stdout, o.stderr)
}

// patience is how long a process may take before a test gives it up.
const patience = 60 * time.Second

// start runs a process to its end. It may be called from any goroutine.
func (w *world) start(s setting, args ...string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := w.command(ctx, s, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	out := outcome{stdout: stdout.String(), stderr: stderr.String()}
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		out.code = x.ExitCode() // -1: by a signal
	} else if err != nil {
		w.t.Errorf("solekey %q: %v", args, err)
		out.code = -2
	}
	w.note(args, out.stdout, out.stderr)
	return out
}

// run is start without a setting.
func (w *world) run(args ...string) outcome { return w.start(setting{}, args...) }

// must runs a command that has to succeed.
func (w *world) must(args ...string) outcome {
	w.t.Helper()
	return w.mustWith("", args...)
}

// mustWith runs a command with this stdin, and it has to succeed.
func (w *world) mustWith(stdin string, args ...string) outcome {
	w.t.Helper()
	out := w.start(setting{stdin: stdin}, args...)
	if out.code != 0 {
		w.t.Fatalf("solekey %q: %v", args, out)
	}
	return out
}

// put stores a value for an identity.
func (w *world) put(identity, label, value string, flags ...string) {
	w.t.Helper()
	w.mustWith(value, append([]string{"put", label, "--identity", identity, "--stdin", "--no-hosts"}, flags...)...)
}

// crash matches what the runtime prints when a program falls over.
var crash = regexp.MustCompile(`(?m)^(panic: |fatal error: |goroutine \d+ \[|runtime: |SIG[A-Z]+: )|runtime error: `)

// note wants no crash in what a process said.
func (w *world) note(args []string, texts ...string) {
	for _, s := range texts {
		if at := crash.FindStringIndex(s); at != nil {
			w.t.Errorf("solekey %q fell over: %s", args, s[at[0]:min(len(s), at[0]+400)])
		}
	}
}

// server is a running `solekey mcp`.
type server struct {
	w    *world
	args []string
	cmd  *exec.Cmd
	in   io.WriteCloser
	over chan struct{} // closed when its stdout ended

	stdout, stderr bytes.Buffer // to be read once over is closed, and the process waited for

	mu      sync.Mutex
	next    int
	waiting map[string]chan []byte
	code    int
	waited  bool
}

// serve starts `solekey mcp` and shakes hands with it.
func (w *world) serve(args ...string) *server {
	w.t.Helper()
	return w.serveWith(setting{}, args...)
}

func (w *world) serveWith(set setting, args ...string) *server {
	w.t.Helper()
	s, err := w.tryServe(set, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// tryServe is serveWith for goroutines.
func (w *world) tryServe(set setting, args ...string) (*server, error) {
	s := &server{w: w, args: append([]string{"mcp"}, args...), over: make(chan struct{}), waiting: map[string]chan []byte{}}
	s.cmd = w.command(context.Background(), set, s.args...)
	s.cmd.Stdin, s.cmd.Stderr = nil, &s.stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go s.read(out)
	w.t.Cleanup(func() { s.kill() })
	if _, err := s.ask("initialize", map[string]any{
		"protocolVersion": "2025-11-25", "capabilities": map[string]any{}, "clientInfo": map[string]any{"name": "promise", "version": "1"},
	}); err != nil {
		return nil, fmt.Errorf("shaking hands with solekey %q: %w", s.args, err)
	}
	return s, s.write(`{"jsonrpc":"2.0","method":"notifications/initialized"}`)
}

// read hands each line to the caller whose id it carries. What carries no id
// of ours stays in the transcript.
func (s *server) read(out io.Reader) {
	defer close(s.over)
	r := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		s.stdout.Write(line)
		var head struct{ ID json.RawMessage }
		if len(line) > 0 && json.Unmarshal(line, &head) == nil {
			s.mu.Lock()
			if c := s.waiting[string(head.ID)]; c != nil {
				c <- line
				delete(s.waiting, string(head.ID))
			}
			s.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

// write sends one line as it stands.
func (s *server) write(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := io.WriteString(s.in, line+"\n")
	return err
}

// answer is what a server said to one request.
type answer struct {
	raw     []byte         // the line without the id
	code    int            // of a JSON-RPC error; 0: none
	refused bool           // a tool error
	word    string         // of a refusal
	message string         // of a refusal or of a JSON-RPC error
	hint    string         // of a refusal
	fields  map[string]any // of a result
}

// text returns a member of the result.
func (a answer) text(name string) string {
	s, _ := a.fields[name].(string)
	return s
}

func (a answer) String() string { return string(a.raw) }

var (
	errGone   = errors.New("the server is gone")
	errSilent = errors.New("the server does not answer")
)

// send begins a request; wait, which it returns, ends it.
func (s *server) send(method string, params any) (wait func() (answer, error), err error) {
	body, err := json.Marshal(params)
	if err != nil {
		return nil, err
	}
	c := make(chan []byte, 1)
	s.mu.Lock()
	s.next++
	id := fmt.Sprint(s.next)
	s.waiting[id] = c
	_, err = fmt.Fprintf(s.in, `{"jsonrpc":"2.0","id":%s,"method":%q,"params":%s}`+"\n", id, method, body)
	s.mu.Unlock()
	if err != nil {
		return nil, errors.Join(errGone, err)
	}
	return func() (answer, error) { return s.wait(c, id) }, nil
}

func (s *server) wait(c chan []byte, id string) (answer, error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case line := <-c:
		return parseAnswer(line, id)
	case <-s.over:
	case <-t.C:
		return answer{}, errSilent
	}
	select {
	case line := <-c:
		return parseAnswer(line, id)
	default:
		return answer{}, errGone
	}
}

func parseAnswer(line []byte, id string) (answer, error) {
	var m struct {
		Result json.RawMessage
		Error  *struct {
			Code    int
			Message string
		}
	}
	a := answer{raw: bytes.Replace(line, []byte(`"id":`+id), []byte(`"id":0`), 1)}
	if err := json.Unmarshal(line, &m); err != nil {
		return a, fmt.Errorf("an answer is no JSON: %w", err)
	}
	if m.Error != nil {
		a.code, a.message = m.Error.Code, m.Error.Message
		return a, nil
	}
	var r struct {
		IsError bool
		Content []struct{ Text string }
	}
	if json.Unmarshal(m.Result, &r) != nil || len(r.Content) == 0 {
		return a, nil // a result of another method
	}
	a.refused = r.IsError
	if !a.refused {
		return a, json.Unmarshal([]byte(r.Content[0].Text), &a.fields)
	}
	var why struct{ Error, Message, Hint string }
	err := json.Unmarshal([]byte(r.Content[0].Text), &why)
	a.word, a.message, a.hint = why.Error, why.Message, why.Hint
	return a, err
}

// ask makes a request and waits for its answer.
func (s *server) ask(method string, params any) (answer, error) {
	wait, err := s.send(method, params)
	if err != nil {
		return answer{}, err
	}
	return wait()
}

// call calls a tool.
func (s *server) call(tool string, args any) (answer, error) {
	return s.ask("tools/call", map[string]any{"name": tool, "arguments": args})
}

// mustCall calls a tool of a server that has to answer, if only a refusal.
func (s *server) mustCall(tool string, args map[string]any) answer {
	s.w.t.Helper()
	a, err := s.call(tool, args)
	if err != nil {
		s.w.t.Fatalf("%s %v: %v", tool, args, err)
	}
	return a
}

// get reads a label.
func (s *server) get(label string) answer {
	s.w.t.Helper()
	return s.mustCall("get_secret", map[string]any{"label": label})
}

// wants fails the test unless a is this value, or with an empty value this
// refusal.
func (a answer) wants(t *testing.T, what, value, word string) {
	t.Helper()
	if a.text("value") != value || a.word != word {
		t.Errorf("%s = %v, want value %q, refusal %q", what, a, value, word)
	}
}

// close ends the input, as a client does, and returns the exit code.
func (s *server) close() int {
	_ = s.in.Close()
	return s.end()
}

// kill ends the process as kill -9 does. It may be repeated.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	s.end()
}

func (s *server) end() int {
	select {
	case <-s.over:
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.over
		s.w.t.Errorf("solekey %q does not end", s.args)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.waited {
		s.waited = true
		_ = s.cmd.Wait()
		s.code = s.cmd.ProcessState.ExitCode()
		s.w.note(s.args, s.stdout.String(), s.stderr.String())
	}
	return s.code
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

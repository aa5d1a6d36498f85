package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite golden files and script expectations")

func TestMain(m *testing.M) {
	detach()
	programs := map[string]func(){"solekey": main, "solekey-mortal": mortalMain}
	maps.Copy(programs, actors())
	testscript.Main(m, programs)
}

// TestScripts runs testdata/script/*.txtar on the real binary, in a home of
// its own and without an OS keyring.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("XDG_DATA_HOME", filepath.Join(e.WorkDir, "home", "data"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "home", "config"))
			e.Setenv("LOCALAPPDATA", filepath.Join(e.WorkDir, "home"))
			e.Setenv("SOLEKEY_NO_KEYRING", "1")
			e.Setenv("CREDENTIALS_DIRECTORY", "")
			e.Setenv("DATA", filepath.Join(e.WorkDir, "home", "data", "solekey"))
			e.Setenv("CONFIG", filepath.Join(e.WorkDir, "home", "config", "solekey"))
			return os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"mcpcall": mcpCall, "exits": exits, "mode": mode, "hides": hides, "jsonkeys": jsonKeys, "keep": keep, "pty": ptyRun,
			"serve": serveScript, "fetch": fetch, "harm": harmScript,
		},
	})
}

// exits runs a command and wants this exit code: exits CODE solekey ARGS..
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS..")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if x := (*exec.ExitError)(nil); errors.As(err, &x) {
		got = fmt.Sprint(x.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// mode wants this mode of files: mode 0600 FILE..
func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode OCTAL FILE..")
	}
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, got, args[0])
		}
	}
}

// hides wants that no file below a directory holds a text, in clear or in a
// usual encoding: hides TEXT DIR
func hides(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: hides TEXT DIR")
	}
	var found []string
	err := filepath.WalkDir(ts.MkAbs(args[1]), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, form := range forms(args[0]) {
			if bytes.Contains(b, form) {
				found = append(found, path)
				break
			}
		}
		return err
	})
	ts.Check(err)
	if neg == (len(found) == 0) {
		ts.Fatalf("found in %v", found)
	}
}

// forms returns a text in clear, hex and base64 at three alignments.
func forms(s string) [][]byte {
	out := [][]byte{[]byte(s), []byte(hex.EncodeToString([]byte(s))), []byte(strings.ToUpper(hex.EncodeToString([]byte(s))))}
	for shift := range 3 {
		enc := base64.StdEncoding.EncodeToString(append(make([]byte, shift), s...))
		out = append(out, []byte(enc[4*((shift+2)/3):len(enc)-4])) // without what depends on neighbours
	}
	return out
}

// jsonKeys wants one JSON object with these members on stdout, or on stderr
// with a leading `stderr`: jsonkeys [stderr] KEY..
func jsonKeys(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: jsonkeys [stderr] KEY..")
	}
	src := "stdout"
	if args[0] == "stderr" {
		src, args = "stderr", args[1:]
	}
	var got map[string]any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile(src)))
	ts.Check(dec.Decode(&got))
	if dec.More() {
		ts.Fatalf("%s holds more than one object", src)
	}
	for _, k := range args {
		if _, ok := got[k]; !ok {
			ts.Fatalf("%s has no member %s: %v", src, k, got)
		}
	}
	for k, v := range got {
		if v == nil || k != strings.ToLower(k) {
			ts.Fatalf("member %s is null or not snake_case", k)
		}
	}
}

// keep puts a member of the JSON object on stdout into a variable:
// keep NAME PATH.TO.MEMBER
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keep NAME MEMBER")
	}
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	for _, part := range strings.Split(args[1], ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[part]
		case []any:
			i := 0
			_, err := fmt.Sscan(part, &i)
			ts.Check(err)
			v = at[i]
		}
	}
	s, ok := v.(string)
	if !ok {
		ts.Fatalf("%s is no text", args[1])
	}
	ts.Setenv(args[0], s)
}

// mcpCall starts `solekey mcp FLAGS`, shakes hands, and plays the lines of a
// file, each after the answer to the one before: mcpcall FILE FLAGS..
//
//	get_secret {"label":"X"}   a tool call; prints its result
//	tools/list                 a request without parameters; prints the result
//	exec solekey ..            runs a command beside the server
//	{..}                       a raw line; prints the answer
func mcpCall(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: mcpcall FILE FLAGS..")
	}
	cmd := command(ts, append([]string{"solekey", "mcp"}, args[1:]...)...)
	in, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	cmd.Stderr = ts.Stderr()
	ts.Check(cmd.Start())
	stop := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer stop.Stop()
	c := &mcpClient{in: in, out: bufio.NewReaderSize(out, 1<<20)}
	c.ask(`"initialize"`, `{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"script","version":"1"}}`)
	_, _ = io.WriteString(in, `{"jsonrpc":"2.0","method":"notifications/initialized"}`+"\n")
	for l := range strings.Lines(ts.ReadFile(args[0])) {
		c.play(ts, strings.TrimSpace(l))
	}
	_ = in.Close()
	err = cmd.Wait()
	if (err != nil) != neg {
		ts.Fatalf("the server ended with %v", err)
	}
}

// serveScript starts `solekey serve FLAGS`, waits until it is ready, puts the
// URL of /mcp into $URL and that of the private port into $PRIVATE, and stops
// it as a supervisor does: serve start FLAGS.. and serve stop. What the
// server printed is then stderr.
func serveScript(ts *testscript.TestScript, neg bool, args []string) {
	const name = "SERVE_PID"
	switch {
	case neg || len(args) == 0:
		ts.Fatalf("usage: serve start FLAGS.. | serve stop")
	case args[0] == "start":
		log := ts.MkAbs("serve.log")
		f, err := os.Create(log)
		ts.Check(err)
		defer f.Close()
		cmd := command(ts, append([]string{"solekey", "serve"}, args[1:]...)...)
		cmd.Stderr = f
		ts.Check(cmd.Start())
		over := make(chan struct{})
		go func() { _ = cmd.Wait(); close(over) }()
		ts.Defer(func() { _ = cmd.Process.Kill(); <-over })
		ts.Setenv(name, strconv.Itoa(cmd.Process.Pid))
		ts.Setenv("URL", "")
		for ts.Getenv("URL") == "" {
			b, err := os.ReadFile(log)
			ts.Check(err)
			if m := servedAt.FindSubmatch(b); m != nil {
				ts.Setenv("URL", string(m[1]))
				ts.Setenv("PRIVATE", "http://"+string(m[2]))
			}
			select {
			case <-over:
				ts.Fatalf("serve ended: %s", b)
			case <-time.After(5 * time.Millisecond):
			}
		}
	case args[0] == "stop":
		pid, err := strconv.Atoi(ts.Getenv(name))
		ts.Check(err)
		p, err := os.FindProcess(pid)
		ts.Check(err)
		ts.Check(p.Signal(syscall.SIGTERM))
		for end := time.Now().Add(60 * time.Second); p.Signal(syscall.Signal(0)) == nil; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				ts.Fatalf("serve does not end")
			}
		}
		_, err = io.WriteString(ts.Stderr(), ts.ReadFile("serve.log"))
		ts.Check(err)
	}
}

// servedAt finds the line of a server that is ready.
var servedAt = regexp.MustCompile(`(?m)^solekey: (http\S+)(?:.*metrics ([^\s)]+))?`)

// fetch reads from a server over HTTP: fetch STATUS URL [LABEL KEYFILE]. With a
// label it calls get_secret. What came is then stdout.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 && len(args) != 4 {
		ts.Fatalf("usage: fetch STATUS URL [LABEL KEYFILE]")
	}
	req, err := http.NewRequest(http.MethodGet, args[1], nil)
	ts.Check(err)
	if len(args) == 4 {
		body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":%q}}}`, args[2])
		req, err = http.NewRequest(http.MethodPost, args[1], strings.NewReader(body))
		ts.Check(err)
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(ts.ReadFile(args[3])))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
	}
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
	if strconv.Itoa(resp.StatusCode) != args[0] {
		ts.Fatalf("status %d, want %s", resp.StatusCode, args[0])
	}
}

// command prepares a command with the environment of the script.
func command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	path := args[0]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		for _, ext := range []string{"", ".exe"} {
			if p := filepath.Join(dir, args[0]+ext); path == args[0] && isFile(p) {
				path = p
			}
		}
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{
		"HOME", "PATH", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "SYSTEMROOT", "TMPDIR",
		"SOLEKEY_NO_KEYRING", "SOLEKEY_HOME", "SOLEKEY_API_KEY", "SOLEKEY_API_KEY_FILE", "GOCOVERDIR",
		"CREDENTIALS_DIRECTORY", "SOLEKEY_SERVE_LISTEN", "SOLEKEY_SERVE_METRICS", "SOLEKEY_SERVE_ALLOW_HOST", "SOLEKEY_SERVE_INSECURE",
	} {
		if v := ts.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	return cmd
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

type mcpClient struct {
	in  io.Writer
	out *bufio.Reader
	id  int
}

// ask sends one request and returns the answer; nil if the server is gone.
func (c *mcpClient) ask(method, params string) json.RawMessage {
	c.id++
	_, _ = fmt.Fprintf(c.in, `{"jsonrpc":"2.0","id":%d,"method":%s,"params":%s}`+"\n", c.id, method, params)
	return c.answer()
}

func (c *mcpClient) answer() json.RawMessage {
	l, err := c.out.ReadBytes('\n')
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(l)
}

func (c *mcpClient) play(ts *testscript.TestScript, l string) {
	word, rest, _ := strings.Cut(l, " ")
	switch {
	case l == "" || word == "#":
		return
	case word == "exec":
		out, err := command(ts, strings.Fields(rest)...).CombinedOutput()
		if err != nil {
			ts.Fatalf("%s: %v\n%s", rest, err, out)
		}
		return
	case word[0] == '{':
		_, _ = io.WriteString(c.in, l+"\n")
		fmt.Fprintf(ts.Stdout(), "%s\n", c.answer())
		return
	case strings.Contains(word, "/"):
		fmt.Fprintf(ts.Stdout(), "%s: %s\n", word, result(c.ask(fmt.Sprintf("%q", word), "{}")))
		return
	}
	answer := c.ask(`"tools/call"`, fmt.Sprintf(`{"name":%q,"arguments":%s}`, word, rest))
	fmt.Fprintf(ts.Stdout(), "%s: %s\n", word, toolText(answer))
}

// result returns the result of an answer, or its error.
func result(answer json.RawMessage) string {
	var a struct{ Result, Error json.RawMessage }
	if json.Unmarshal(answer, &a) != nil {
		return "no answer"
	}
	if a.Error != nil {
		return "error " + string(a.Error)
	}
	return string(a.Result)
}

// toolText returns the text of a tool result, with `refused` before an error.
func toolText(answer json.RawMessage) string {
	var a struct {
		Result struct {
			IsError bool
			Content []struct{ Text string }
		}
		Error json.RawMessage
	}
	if json.Unmarshal(answer, &a) != nil {
		return "no answer"
	}
	if a.Error != nil || len(a.Result.Content) == 0 {
		return "error " + string(a.Error)
	}
	if a.Result.IsError {
		return "refused " + a.Result.Content[0].Text
	}
	return a.Result.Content[0].Text
}

// TestHelp compares the help of every command with testdata/help.txt, and
// wants an example that a person would paste.
func TestHelp(t *testing.T) {
	var got bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, now: time.Now, conf: newConfig(func(string) string { return "" })}
	root := newRoot(a)
	root.InitDefaultHelpCmd()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !strings.HasPrefix(strings.TrimSpace(c.Example), "solekey ") && !strings.Contains(c.Example, "| solekey ") && !strings.Contains(c.Example, "(solekey ") {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: Short is missing or ends with a full stop", c.CommandPath())
		}
		c.InitDefaultHelpFlag()
		fmt.Fprintf(&got, "### %s\n%s\n\n", c.CommandPath(), strings.TrimSpace(c.Long))
		c.SetOut(&got)
		if err := c.Usage(); err != nil {
			t.Fatal(err)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root.SetErr(&got)
	walk(root)
	const golden = "testdata/help.txt"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("help differs from %s; run with -update after review (-want +got):\n%s", golden, diff)
	}
}

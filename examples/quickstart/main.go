// Command quickstart shows the whole of solekey on one .env file, in a home
// directory of its own that it removes at the end: a store, an identity, the
// import, an MCP client that reads by label, and a revocation that the
// running server obeys on its next call.
//
//	go run ./examples/quickstart            # examples/demo.env
//	go run ./examples/quickstart path/.env  # your own; nothing of it is kept
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

func main() {
	file := filepath.Join("examples", "demo.env")
	if len(os.Args) > 1 {
		file = os.Args[1]
	}
	if err := run(file, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// tour is one run: the binary, its own home and where to tell of it.
type tour struct {
	bin, home string
	out       io.Writer
}

func run(file string, out io.Writer) error {
	home, err := os.MkdirTemp("", "solekey-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	t := &tour{bin: filepath.Join(home, "solekey"), home: home, out: out}
	if runtime.GOOS == "windows" {
		t.bin += ".exe"
	}
	fmt.Fprintln(out, "$ go build ./cmd/solekey")
	build := exec.Command("go", "build", "-o", t.bin, "./cmd/solekey")
	build.Stdout, build.Stderr = out, out
	if err := build.Run(); err != nil {
		return fmt.Errorf("building solekey (run this at the top of the repository): %w", err)
	}
	for _, args := range [][]string{
		{"init", "--root", "file", "--no-recovery"},
		{"identity", "create", "demo"},
		{"import", file, "--identity", "demo"},
	} {
		if err := t.solekey(args...); err != nil {
			return err
		}
	}
	return t.serve()
}

// solekey runs one command and shows what it prints.
func (t *tour) solekey(args ...string) error {
	fmt.Fprintln(t.out, "\n$ solekey", typed(args))
	cmd := t.command(args...)
	cmd.Stdout, cmd.Stderr = t.out, t.out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("solekey %s: %w", args[0], err)
	}
	return nil
}

// typed writes arguments as a person types them into a shell.
func typed(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		if words[i] = a; strings.ContainsAny(a, " '\"$") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

func (t *tour) command(args ...string) *exec.Cmd {
	cmd := exec.Command(t.bin, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.home, "USERPROFILE="+t.home, "LOCALAPPDATA="+t.home, "SOLEKEY_HOME=", "XDG_DATA_HOME=", "XDG_CONFIG_HOME=", "SOLEKEY_NO_KEYRING=1")
	return cmd
}

// serve plays an MCP client over stdio.
func (t *tour) serve() error {
	fmt.Fprintln(t.out, "\n$ solekey mcp --profile demo        # an MCP client speaks to it over stdio")
	cmd := t.command("mcp", "--profile", "demo")
	cmd.Stderr = t.out
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := &client{in: in, answers: bufio.NewScanner(pipe), out: t.out}
	c.answers.Buffer(nil, 1<<22)
	talk := t.talk(c)
	return errors.Join(talk, in.Close(), cmd.Wait())
}

func (t *tour) talk(c *client) error {
	if _, err := c.ask("initialize", map[string]any{
		"protocolVersion": "2025-11-25", "capabilities": map[string]any{}, "clientInfo": map[string]any{"name": "quickstart", "version": "1"},
	}); err != nil {
		return err
	}
	fmt.Fprintln(c.in, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	list, err := c.call("list_labels", map[string]any{})
	if err != nil {
		return err
	}
	secret, code := pick(list)
	if secret != "" {
		if _, err := c.call("get_secret", map[string]any{"label": secret}); err != nil {
			return err
		}
	}
	if code != "" {
		if _, err := c.call("get_totp_code", map[string]any{"label": code, "min_remaining": 0}); err != nil {
			return err
		}
	}
	if err := t.solekey("identity", "revoke", "demo", "--yes", "--reason", "end of the tour"); err != nil {
		return err
	}
	fmt.Fprintln(t.out, "\nthe same server, the very next call:")
	answer, err := c.call("get_secret", map[string]any{"label": secret})
	if err == nil && answer["error"] != "revoked" {
		err = errors.New("the revoked key was answered")
	}
	return err
}

// pick chooses a label to read and one to get a code of.
func pick(list map[string]any) (secret, code string) {
	labels, _ := list["labels"].([]any)
	for _, l := range labels {
		entry, _ := l.(map[string]any)
		label, _ := entry["label"].(string)
		switch {
		case entry["has_totp"] == true && code == "":
			code = label
		case entry["exposure"] == "reveal" && secret == "":
			secret = label
		}
	}
	return secret, code
}

// client is as much of an MCP client as a tour needs: JSON-RPC 2.0, one
// message a line.
type client struct {
	in      io.Writer
	answers *bufio.Scanner
	out     io.Writer
	id      int
}

func (c *client) ask(method string, params any) (json.RawMessage, error) {
	c.id++
	b, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": c.id, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(c.in, "%s\n", b); err != nil {
		return nil, err
	}
	if !c.answers.Scan() {
		return nil, fmt.Errorf("%s: the server ended: %w", method, errors.Join(c.answers.Err(), io.ErrUnexpectedEOF))
	}
	var answer struct {
		Result json.RawMessage
		Error  *struct{ Message string }
	}
	if err := json.Unmarshal(c.answers.Bytes(), &answer); err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, fmt.Errorf("%s: %s", method, answer.Error.Message)
	}
	return answer.Result, nil
}

// call calls a tool and shows its answer, values masked.
func (c *client) call(tool string, args map[string]any) (map[string]any, error) {
	raw, err := c.ask("tools/call", map[string]any{"name": tool, "arguments": args})
	if err != nil {
		return nil, err
	}
	var result struct {
		Content []struct{ Text string }
	}
	if err := json.Unmarshal(raw, &result); err != nil || len(result.Content) != 1 {
		return nil, fmt.Errorf("%s: unexpected result", tool)
	}
	answer := map[string]any{}
	if err := json.Unmarshal([]byte(result.Content[0].Text), &answer); err != nil {
		return nil, err
	}
	shown := make(map[string]any, len(answer))
	for k, v := range answer {
		shown[k] = v
	}
	if v, ok := shown["value"].(string); ok {
		shown["value"] = fmt.Sprintf("(%d characters, masked by this tour)", len(v))
	}
	given, _ := json.Marshal(args)
	text, _ := json.Marshal(shown)
	fmt.Fprintf(c.out, "%s %s\n  %s\n", tool, given, text)
	return answer, nil
}

// Mcpclient is an MCP client in one file and without a library: it starts
// `solekey mcp --profile NAME` as clients do, and speaks JSON lines over its
// pipes. It lists the labels, reads one and prints the answers, with the value
// masked unless -show is given.
//
//	go run ./examples/mcpclient -profile me OPENAI_API_KEY
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "mcpclient:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("mcpclient", flag.ContinueOnError)
	flags.SetOutput(stderr)
	profile := flags.String("profile", "me", "profile that the server serves")
	program := flags.String("solekey", "solekey", "path of the solekey program")
	show := flags.Bool("show", false, "print the value")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	c, err := start(stderr, *program, "mcp", "--profile", *profile)
	if err != nil {
		return err
	}
	return errors.Join(c.talk(stdout, flags.Arg(0), *show), c.stop())
}

// client is a running server and the pipes to it.
type client struct {
	server *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	last   int // request ID
}

func start(stderr io.Writer, program string, args ...string) (*client, error) {
	c := &client{server: exec.Command(program, args...)}
	c.server.Stderr = stderr
	var err error
	if c.in, err = c.server.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.server.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	return c, c.server.Start()
}

// stop closes the server's input, on which it finishes and ends.
func (c *client) stop() error { return errors.Join(c.in.Close(), c.server.Wait()) }

// talk is a whole session. Without a label it reads the first one that may be
// read.
func (c *client) talk(out io.Writer, label string, show bool) error {
	hello := map[string]any{"protocolVersion": "2025-11-25", "capabilities": map[string]any{}, "clientInfo": map[string]any{"name": "example", "version": "1"}}
	var who struct {
		ServerInfo struct{ Name, Version string }
	}
	if err := c.call("initialize", hello, &who); err != nil {
		return err
	}
	if err := c.send(map[string]any{"jsonrpc": "2.0", "method": "notifications/initialized"}); err != nil {
		return err
	}
	fmt.Fprintln(out, "server:", who.ServerInfo.Name, who.ServerInfo.Version)
	var offered struct{ Tools []struct{ Name string } }
	if err := c.call("tools/list", map[string]any{}, &offered); err != nil {
		return err
	}
	for _, t := range offered.Tools {
		fmt.Fprintln(out, "tool:  ", t.Name)
	}
	var list struct {
		Labels []struct{ Label, Kind, Exposure string }
	}
	if err := c.tool("list_labels", map[string]any{}, &list); err != nil {
		return err
	}
	for _, l := range list.Labels {
		fmt.Fprintln(out, "label: ", l.Label, l.Kind, l.Exposure)
		if label == "" && l.Exposure == "reveal" {
			label = l.Label
		}
	}
	if label == "" {
		return errors.New("no label that may be read: solekey put LABEL")
	}
	var secret map[string]any
	if err := c.tool("get_secret", map[string]any{"label": label}, &secret); err != nil {
		return err
	}
	if _, ok := secret["value"]; ok && !show {
		secret["value"] = "******** (-show prints it)"
	}
	answer, err := json.Marshal(secret)
	fmt.Fprintf(out, "secret: %s\n", answer)
	return err
}

// tool calls a tool and decodes its result, which is JSON in a text.
func (c *client) tool(name string, args, result any) error {
	var r struct {
		IsError bool
		Content []struct{ Text string }
	}
	if err := c.call("tools/call", map[string]any{"name": name, "arguments": args}, &r); err != nil {
		return err
	}
	if len(r.Content) != 1 {
		return fmt.Errorf("%s: no result", name)
	}
	text := []byte(r.Content[0].Text)
	if !r.IsError {
		return json.Unmarshal(text, result)
	}
	var refusal struct{ Message, Hint string }
	if err := json.Unmarshal(text, &refusal); err != nil {
		return err
	}
	return fmt.Errorf("%s: %s %s", name, refusal.Message, refusal.Hint)
}

// call sends a request and waits for its answer.
func (c *client) call(method string, params, result any) error {
	c.last++
	if err := c.send(map[string]any{"jsonrpc": "2.0", "id": c.last, "method": method, "params": params}); err != nil {
		return err
	}
	for {
		line, err := c.out.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("%s: the server ended: %w", method, err)
		}
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		switch err := json.Unmarshal(line, &answer); {
		case err != nil:
			return fmt.Errorf("%s: %w", method, err)
		case answer.ID != c.last:
			continue // a notification
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error.Message)
		}
		return json.Unmarshal(answer.Result, result)
	}
}

func (c *client) send(message any) error { return json.NewEncoder(c.in).Encode(message) }

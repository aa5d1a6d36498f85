// Gosdk drives the official Go SDK against solekey on one transport: list the
// tools, read the value, be refused with a hint, be turned away with another
// key. It is a module of its own, so the SDK is no dependency of solekey.
//
//	LADDER='{...}' gosdk http|sse|stdio
//
// It prints the revision it spoke; it exits 1 with a line that says what was
// wrong.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// ladder is what every client of the test ladder is told.
type ladder struct {
	URLs          map[string]string      // by transport
	Commands      map[string][2][]string // for stdio: with the key, with another
	Key, OtherKey string                 // files
	Label, Value  string
}

func main() {
	if err := run(context.Background(), os.Args[1]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func run(ctx context.Context, transport string) error {
	var l ladder
	if err := json.Unmarshal([]byte(os.Getenv("LADDER")), &l); err != nil {
		return fmt.Errorf("reading LADDER: %w", err)
	}
	revision, err := l.serves(ctx, transport)
	if err != nil {
		return err
	}
	words := ""
	s, err := l.connect(ctx, transport, l.OtherKey)
	if err == nil {
		defer s.Close()
		words, err = call(ctx, s, l.Label)
	}
	if err != nil {
		words = err.Error()
	}
	want := []string{"Unauthorized"} // it shows the status of a 401 and not its body
	if transport == "stdio" {
		want = []string{"unauthorized", "No valid agent key."}
	}
	if err := expect("another key", words, want...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]string{"revision": revision, "refusal": "shows " + want[0]})
}

// serves checks what the right key gets, and returns the revision spoken.
func (l ladder) serves(ctx context.Context, transport string) (string, error) {
	s, err := l.connect(ctx, transport, l.Key)
	if err != nil {
		return "", fmt.Errorf("connecting: %w", err)
	}
	defer s.Close()
	list, err := s.ListTools(ctx, nil)
	if err != nil {
		return "", fmt.Errorf("listing: %w", err)
	}
	var names []string
	for _, t := range list.Tools {
		names = append(names, t.Name)
	}
	if err := expect("tools", strings.Join(names, " "), "get_secret", "get_totp_code", "list_labels"); err != nil {
		return "", err
	}
	value, err := call(ctx, s, l.Label)
	if err != nil {
		return "", err
	}
	if err := expect("value", value, `"value":"`+l.Value+`"`); err != nil {
		return "", err
	}
	refusal, err := call(ctx, s, "demo1")
	if err != nil {
		return "", err
	}
	return s.InitializeResult().ProtocolVersion, expect("refusal", refusal, "not_found", "No label demo1 for this key.", "Did you mean demo?")
}

func (l ladder) connect(ctx context.Context, transport, keyFile string) (*mcp.ClientSession, error) {
	c := mcp.NewClient(&mcp.Implementation{Name: "ladder", Version: "1"}, nil)
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: bearer(strings.TrimSpace(string(key)))}
	switch transport {
	case "http":
		return c.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: l.URLs[transport], HTTPClient: client}, nil)
	case "sse":
		return c.Connect(ctx, &mcp.SSEClientTransport{Endpoint: l.URLs[transport], HTTPClient: client}, nil)
	}
	command := l.Commands[transport][0]
	if keyFile != l.Key {
		command = l.Commands[transport][1]
	}
	return c.Connect(ctx, &mcp.CommandTransport{Command: exec.Command(command[0], command[1:]...)}, nil)
}

// bearer sends a key with every request.
type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

// call reads a label and returns the text of the result.
func call(ctx context.Context, s *mcp.ClientSession, label string) (string, error) {
	r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: "get_secret", Arguments: map[string]any{"label": label}})
	if err != nil {
		return "", fmt.Errorf("calling: %w", err)
	}
	var text strings.Builder
	for _, c := range r.Content {
		if t, ok := c.(*mcp.TextContent); ok {
			text.WriteString(t.Text)
		}
	}
	return text.String(), nil
}

func expect(what, text string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return fmt.Errorf("%s: no %s in: %.300s", what, p, text)
		}
	}
	return nil
}

package main

import (
	"strings"
	"testing"
)

// TestServerTellsATypistWhatItWaitsFor starts servers by hand, on a terminal:
// they say whom they wait for, and what is wrong, as nobody calls a tool there.
// The control is a client, on a pipe: it is told by the answers.
func TestServerTellsATypistWhatItWaitsFor(t *testing.T) {
	w := newWorld(t)
	w.must("identity", "create", "ci")
	for _, c := range []struct {
		profile string
		want    []string
	}{
		{"ci", []string{"waiting for an MCP client", "try: solekey profile show NAME"}},
		{"nobody", []string{"no profile nobody on this machine", "try: solekey profile list", "waiting for an MCP client"}},
	} {
		ctrl, tty, err := openPty()
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		cmd := w.command(t.Context(), setting{}, "mcp", "--profile", c.profile)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, nil, &said
		if _, err := ctrl.WriteString("\x04"); err != nil { // Ctrl-D
			t.Fatal(err)
		}
		if err := cmd.Run(); err != nil {
			t.Errorf("mcp --profile %s on a terminal: %v", c.profile, err)
		}
		_, _ = tty.Close(), ctrl.Close()
		for _, want := range c.want {
			if !strings.Contains(said.String(), want) {
				t.Errorf("mcp --profile %s on a terminal does not say %q: %s", c.profile, want, said.String())
			}
		}
		if out := w.must("mcp", "--profile", c.profile); out.stderr != "" {
			t.Errorf("mcp --profile %s on a pipe says %q, want nothing", c.profile, out.stderr)
		}
	}
}

package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkStart measures from spawning `solekey mcp` to its answer to
// `initialize`, and to the first value.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	bin := filepath.Join(dir, "solekey")
	if out, err := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	env := append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir+"/data", "XDG_CONFIG_HOME="+dir+"/config", "SOLEKEY_NO_KEYRING=1", "SOLEKEY_HOME=", "SOLEKEY_API_KEY=", "SOLEKEY_API_KEY_FILE=")
	solekey := func(args ...string) {
		cmd := exec.Command(bin, args...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("solekey %v: %v\n%s", args, err, out)
		}
	}
	solekey("init", "--no-recovery")
	solekey("identity", "create", "bench")
	solekey("generate", "TOKEN")
	const (
		hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}` + "\n"
		call  = `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"get_secret","arguments":{"label":"TOKEN"}}}` + "\n"
	)
	for name, lines := range map[string][]string{"initialize": {hello}, "value": {hello, call}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				serveOnce(b, bin, env, lines)
			}
		})
	}
}

func serveOnce(b *testing.B, bin string, env, lines []string) {
	cmd := exec.Command(bin, "mcp", "--profile", "bench", "--quiet")
	cmd.Env = env
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	r := bufio.NewReader(out)
	for _, l := range lines {
		if _, err := io.WriteString(in, l); err != nil {
			b.Fatal(err)
		}
		if _, err := r.ReadString('\n'); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer() // the way out is not measured
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}

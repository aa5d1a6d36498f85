package mcp_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// Read the ratios: BenchmarkStdio is a call to a real vault with its audit
// line, NoSync the same on an engine whose journal is memory, BareEcho what
// the protocol library needs for a tool that does nothing, Sync one synced
// line.

// memory is a backend whose journal is not synced and not kept.
type memory struct{ storage.Backend }

func (memory) Append(context.Context, ...[]byte) (uint64, error) { return 1, nil }

func BenchmarkStdio(b *testing.B) {
	for _, journal := range []string{"Sync", "NoSync"} {
		for era, params := range eras {
			for tool, line := range map[string]string{
				"get":  request(7, "tools/call", params(`"name":"get_secret","arguments":{"label":"openai"}`)),
				"list": request(7, "tools/call", params(`"name":"list_labels","arguments":{}`)),
			} {
				b.Run(journal+"/"+era+"/"+tool, func(b *testing.B) {
					h := newHouse(b)
					k := h.agent("a", identity.Grant{})
					h.put(k, secret("openai", "sk-0123456789012345678901234567890123456789"))
					if journal == "NoSync" {
						h.backend.Backend = memory{h.backend.Backend}
					}
					c := dial(b, h.server, k)
					c.ask(line) // the value leaves the mailbox
					benchmarkLine(b, c.in, c.out, line)
				})
			}
		}
	}
}

// BenchmarkRefusal is the cost of the plumbing alone: a call that opens no
// vault.
func BenchmarkRefusal(b *testing.B) {
	for era, params := range eras {
		b.Run(era, func(b *testing.B) {
			c := dial(b, deadServer(identity.ErrExpired), identity.Key{})
			benchmarkLine(b, c.in, c.out, request(7, "tools/call", params(`"name":"get_secret","arguments":{"label":"openai"}`)))
		})
	}
}

func BenchmarkBareEcho(b *testing.B) {
	for era, params := range eras {
		b.Run(era, func(b *testing.B) {
			s := server.NewMCPServer("echo", "1", server.WithToolCapabilities(false))
			s.AddTool(mcp.NewToolWithRawSchema("echo", "echo", []byte(`{"type":"object"}`)), func(_ context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return mcp.NewToolResultText(r.GetString("label", "")), nil
			})
			inR, in := io.Pipe()
			out, outW := io.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = server.NewStdioServer(s).Listen(b.Context(), inR, outW)
			}()
			benchmarkLine(b, in, bufio.NewReader(out), request(7, "tools/call", params(`"name":"echo","arguments":{"label":"openai"}`)))
			in.Close()
			<-done
		})
	}
}

func BenchmarkSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 400)
	for b.Loop() {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

// benchmarkLine sends one line after the other and reports the median.
func benchmarkLine(b *testing.B, in io.Writer, out *bufio.Reader, line string) {
	b.Helper()
	b.ReportAllocs()
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := fmt.Fprintln(in, line); err != nil {
			b.Fatal(err)
		}
		if _, err := out.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
}

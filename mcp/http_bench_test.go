//go:build unix

package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	protocol "github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
)

// Read the ratios. HTTPLegacy, HTTPModern and SSE are get_secret calls to a
// real vault, with the synced audit line, from 1, 16 and 64 callers that wait
// for each answer; with NoSync the journal is memory. HTTPBareEcho is the
// protocol library's own HTTP server with a tool that does nothing,
// HTTPSyncedEcho the same with a tool that writes and syncs a line, and
// HTTPBareNet is net/http giving back a body. Client and server share the
// process in all of them.

var callers = []int{1, 16, 64}

func BenchmarkHTTPLegacy(b *testing.B) { benchmarkVault(b, "legacy", postCaller) }
func BenchmarkHTTPModern(b *testing.B) { benchmarkVault(b, "modern", postCaller) }
func BenchmarkSSE(b *testing.B)        { benchmarkVault(b, "legacy", streamCaller) }

// BenchmarkHTTPBareEcho is what the protocol library needs by itself.
func BenchmarkHTTPBareEcho(b *testing.B) {
	for era, params := range eras {
		h := echoServer(func() error { return nil })
		benchmarkHandler(b, era, h, request(7, "tools/call", params(`"name":"echo","arguments":{"label":"openai"}`)), []string{""}, postCaller)
	}
}

// BenchmarkHTTPSyncedEcho is the floor of one caller who waits for a durable
// line. It is more than the echo and the sync by themselves: what runs after a
// wait for the disk finds cold caches.
func BenchmarkHTTPSyncedEcho(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := make([]byte, 400)
	for era, params := range eras {
		h := echoServer(func() error {
			_, err := f.Write(line)
			return errors.Join(err, f.Sync())
		})
		benchmarkCallers(b, era, 1, h, request(7, "tools/call", params(`"name":"echo","arguments":{"label":"openai"}`)), []string{""}, postCaller)
	}
}

// echoServer is the protocol library's own server with a tool that calls do.
func echoServer(do func() error) http.Handler {
	s := server.NewMCPServer("echo", "1", server.WithToolCapabilities(false))
	s.AddTool(protocol.NewToolWithRawSchema("echo", "echo", []byte(`{"type":"object"}`)), func(_ context.Context, r protocol.CallToolRequest) (*protocol.CallToolResult, error) {
		return protocol.NewToolResultText(r.GetString("label", "")), do()
	})
	return server.NewStreamableHTTPServer(s, server.WithStateLess(true), server.WithDisableStreaming(true))
}

// BenchmarkHTTPBareNet is what HTTP needs without MCP.
func BenchmarkHTTPBareNet(b *testing.B) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		if err == nil {
			_, _ = w.Write(text)
		}
	})
	benchmarkHandler(b, "echo", h, request(7, "tools/call", `{"name":"echo","arguments":{"label":"openai"}}`), []string{""}, postCaller)
}

func benchmarkVault(b *testing.B, era string, dial dialer) {
	for _, journal := range []string{"Sync", "NoSync"} {
		h := newHouse(b)
		var keys []string
		for i := range callers[len(callers)-1] / 8 { // an identity has eight streams
			k := h.agent(fmt.Sprintf("agent-%d", i), identity.Grant{})
			h.put(k, secret("openai", "sk-0123456789012345678901234567890123456789"))
			keys = append(keys, k.Reveal())
		}
		if journal == "NoSync" {
			h.backend.Backend = memory{h.backend.Backend}
		}
		s := mcp.New(h.keeper.Unlock, mcp.Options{Version: "1.2.3", HTTP: mcp.HTTPOptions{Loopback: true, Rate: -1}})
		body := request(7, "tools/call", eras[era](`"name":"get_secret","arguments":{"label":"openai"}`))
		benchmarkHandler(b, journal, s.Handler(), body, keys, dial)
	}
}

// dialer returns a caller: a function that makes one call and waits for its
// answer.
type dialer func(b *testing.B, url, body, key string) (call func() error)

// benchmarkHandler reports the calls of one, of many and of very many callers.
func benchmarkHandler(b *testing.B, name string, h http.Handler, body string, keys []string, dial dialer) {
	for _, n := range callers {
		benchmarkCallers(b, name, n, h, body, keys, dial)
	}
}

// benchmarkCallers reports calls per second and the median of their times.
func benchmarkCallers(b *testing.B, name string, n int, h http.Handler, body string, keys []string, dial dialer) {
	b.Run(fmt.Sprintf("%s/callers=%d", name, n), func(b *testing.B) {
		srv := httptest.NewServer(h)
		b.Cleanup(srv.Close) // after the streams, whose clean-up comes later
		calls := make([]func() error, n)
		for i := range calls {
			calls[i] = dial(b, srv.URL, body, keys[i/8%len(keys)])
			if err := calls[i](); err != nil { // the value leaves the mailbox; the connection is there
				b.Fatal(err)
			}
		}
		b.ReportAllocs()
		spent := processor(b)
		b.ResetTimer()
		took := make([][]time.Duration, n)
		var wait sync.WaitGroup
		for i, call := range calls {
			share := b.N / n
			if i < b.N%n {
				share++
			}
			wait.Go(func() {
				for range share {
					start := time.Now()
					if err := call(); err != nil {
						b.Error(err)
						return
					}
					took[i] = append(took[i], time.Since(start))
				}
			})
		}
		wait.Wait()
		b.StopTimer()
		all := slices.Concat(took...)
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "p50-ns")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		b.ReportMetric(float64((processor(b)-spent).Nanoseconds())/float64(b.N), "cpu-ns/op")
	})
}

// processor returns the processor time that this process has used, which other
// work on the machine changes less than the clock.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// postCaller calls over POST /mcp.
func postCaller(b *testing.B, url, body, key string) func() error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	b.Cleanup(client.CloseIdleConnections)
	modern := strings.Contains(body, "2026-07-28")
	name := "echo"
	if strings.Contains(body, "get_secret") {
		name = "get_secret"
	}
	return func() error {
		r, err := http.NewRequest(http.MethodPost, url+"/mcp", strings.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Accept", "application/json, text/event-stream")
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		if modern {
			r.Header.Set("MCP-Protocol-Version", "2026-07-28")
			r.Header.Set("Mcp-Method", "tools/call")
			r.Header.Set("Mcp-Name", name)
		}
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err == nil && (answer.StatusCode != http.StatusOK || bytes.Contains(text, []byte(`"isError":true`)) || bytes.Contains(text, []byte(`"error":`))) {
			return fmt.Errorf("status %d: %s", answer.StatusCode, text)
		}
		return err
	}
}

// streamCaller calls over a stream of /sse.
func streamCaller(b *testing.B, url, body, key string) func() error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url+"/sse", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	stream, err := client.Do(r)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { stream.Body.Close(); client.CloseIdleConnections() })
	if stream.StatusCode != http.StatusOK {
		b.Fatalf("opening /sse: %s", stream.Status)
	}
	in := bufio.NewReader(stream.Body)
	place, err := data(in)
	if err != nil {
		b.Fatal(err)
	}
	return func() error {
		r, err := http.NewRequest(http.MethodPost, url+place, strings.NewReader(body))
		if err != nil {
			return err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusAccepted {
			return fmt.Errorf("status %d", answer.StatusCode)
		}
		text, err := data(in)
		if err == nil && strings.Contains(text, `"isError":true`) {
			return fmt.Errorf("answer %s", text)
		}
		return err
	}
}

// data returns the data of the next event.
func data(in *bufio.Reader) (string, error) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if text, ok := strings.CutPrefix(line, "data: "); ok {
			return strings.TrimSuffix(text, "\n"), nil
		}
	}
}

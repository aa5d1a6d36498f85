//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// memory reads a line of /proc/PID/status in KiB.
func memory(t *testing.T, pid int, line string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s of process %d", line, pid)
	return 0
}

// growth runs f and returns how much memory of its own the server has more at
// its highest, in KiB.
func (f *fort) growth(t *testing.T, what string, run func()) int {
	t.Helper()
	pid := f.h.cmd.Process.Pid
	before := memory(t, pid, "RssAnon")
	most, over := before, make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			most = max(most, memory(t, pid, "RssAnon"))
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	run()
	close(over)
	watch.Wait()
	t.Logf("%s: %d KiB before, at most %d KiB, %d KiB after; since the start at most %d KiB", what, before, most, memory(t, pid, "RssAnon"), memory(t, pid, "VmHWM"))
	return most - before
}

// warm makes calls until the collector of the server has run some times, so
// that its heap is what it will be.
func (f *fort) warm(t *testing.T) {
	t.Helper()
	a := newAgent(f.h, f.key)
	defer a.close()
	body := `{"jsonrpc":"2.0","id":1,"method":"` + strings.Repeat("x", 200<<10) + `"}`
	for from := f.h.gauge("go_gc_cycles_total") + 4; f.h.gauge("go_gc_cycles_total") < from; {
		for range 50 {
			if r, err := a.post(t.Context(), "/mcp", body, nil); err != nil || r.status == served && r.code == 0 {
				t.Fatalf("a large request: %s, %v", r.said(), err)
			}
		}
	}
}

// pour sends a body that never ends until the server has enough, and returns
// the status and how much it sent.
func (f *fort) pour(head string, chunks bool) (status, sent int, err error) {
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	var all heard
	done := make(chan error, 1)
	go func() {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		b := make([]byte, 4<<10)
		n, err := io.ReadAtLeast(c, b, len("HTTP/1.1 413"))
		all.text = string(b[:n])
		done <- err
		_, _ = io.Copy(io.Discard, c)
	}()
	block := strings.Repeat("x", 64<<10)
	if chunks {
		block = "10000\r\n" + block + "\r\n"
	}
	_, err = io.WriteString(c, f.fill(head))
	for sent = 0; err == nil && sent < 200<<20; sent += len(block) {
		_, err = io.WriteString(c, block)
	}
	if err := <-done; err != nil {
		return 0, sent, fmt.Errorf("no answer after %d bytes: %w", sent, err)
	}
	status, err = strconv.Atoi(all.text[len("HTTP/1.1 "):len("HTTP/1.1 413")])
	return status, sent, err
}

// TestFloodsTakeNoMemory sends bodies of 200 MiB, opens connections that say
// nothing, and begins thousands of sessions that nobody goes on with.
func TestFloodsTakeNoMemory(t *testing.T) {
	t.Parallel()
	f := newFort(t, "--rate", "0")
	f.warm(t)
	grown := f.growth(t, "bodies of 200 MiB", func() { f.pourAll(t) })
	if limit := 8 << 10; grown >= limit {
		t.Errorf("bodies of 200 MiB take %d KiB, want less than %d", grown, limit)
	}
	grown = f.growth(t, "500 connections", func() { f.crowdIn(t, 500) })
	if limit := 16 << 10; grown >= limit {
		t.Errorf("500 connections take %d KiB, want less than %d", grown, limit)
	}
	f.begin(t, 1000)
	grown = f.growth(t, "sessions that are begun", func() { f.begin(t, rounds(1000, 3000, 10_000)) })
	if limit := 16 << 10; grown >= limit {
		t.Errorf("sessions that are begun take %d KiB, want less than %d", grown, limit)
	}
	f.end(t)

	// Control: memory that is taken is seen.
	before := memory(t, os.Getpid(), "RssAnon")
	taken := make([]byte, 64<<20)
	for i := range taken {
		taken[i] = byte(i)
	}
	if after := memory(t, os.Getpid(), "RssAnon"); after-before < 32<<10 && taken[len(taken)-1] != 0 {
		t.Errorf("64 MiB taken look like %d KiB", after-before)
	}
}

// TestUnreadListsTakeBoundedMemory is an agent with a key and many labels, who
// asks for its list on many connections and reads none of the answers. The collector, which may run seldom, made five
// times of them: 300 MiB for one agent, where a container has 512.
func TestUnreadListsTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	f := newFort(t, "--rate", "0")
	hog := strings.TrimSpace(f.must("identity", "create", "hog", "--print-key").stdout)
	var env strings.Builder
	for i := range 600 {
		fmt.Fprintf(&env, "LABEL_WITH_A_LONG_NAME_AS_SETTINGS_OF_GREAT_PROGRAMS_SOMETIMES_HAVE_%d=v%d\n", i, i)
	}
	file := filepath.Join(f.root, "hog.env")
	if err := os.WriteFile(file, []byte(env.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	f.must("import", file, "--identity", "hog", "--all", "--yes")
	f.warm(t)
	const list = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list_labels","arguments":{}}}`
	post := fmt.Sprintf("POST %%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", f.addr, hog, len(list), list)
	grown := f.growth(t, "lists that nobody reads", func() {
		for range 300 {
			c, err := net.Dial("tcp", f.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.(*net.TCPConn).SetReadBuffer(2 << 10)
			_ = c.SetWriteDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(c, strings.Repeat(fmt.Sprintf(post, "/mcp"), 20)) // one that is refused is closed
		}
		for until := time.Now().Add(patience); ; { // the room of the agent is taken
			if _, text := f.h.ask("/metrics"); strings.Contains(text, `{path="/mcp",status="429"}`) {
				return
			} else if time.Now().After(until) {
				t.Error("no request was refused")
				return
			}
		}
	})
	if limit := 200 << 10; grown >= limit {
		t.Errorf("lists that nobody reads take %d KiB, want less than %d", grown, limit)
	}
	f.end(t)
}

func (f *fort) pourAll(t *testing.T) {
	var all sync.WaitGroup
	for _, c := range []struct {
		name, head string
		chunks     bool
		want       int
	}{
		{"length", postLine + "AUTH" + jsonType + "Content-Length: 209715200\r\n\r\n", false, 413},
		{"chunks", postLine + "AUTH" + chunked, true, 413},
		{"length without a key", postLine + jsonType + "Content-Length: 209715200\r\n\r\n", false, 401},
		{"chunks without a key", postLine + chunked, true, 401},
		{"chunks for a stream", "POST /message?sessionId=x HTTP/1.1\r\nHost: HOST\r\nAUTH" + chunked, true, 404},
	} {
		all.Go(func() {
			most := 0
			for range rounds(2, 5, 20) {
				status, sent, err := f.pour(c.head, c.chunks)
				most = max(most, sent)
				if err != nil || status != c.want || sent >= 200<<20 {
					t.Errorf("200 MiB by %s: status %d after %d bytes, %v, want %d before the end", c.name, status, sent, err, c.want)
				}
			}
			t.Logf("of 200 MiB by %s at most %d KiB go out before the end", c.name, most>>10)
		})
	}
	all.Wait()
}

// crowdIn opens connections and keeps them: every other one says nothing, the
// rest have made a call.
func (f *fort) crowdIn(t *testing.T, n int) {
	for i := range n {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if i%2 == 0 {
			continue
		}
		_, _ = io.WriteString(c, f.fill(postLine+"AUTH"+whole))
		if _, err := io.ReadAtLeast(c, make([]byte, 4<<10), 12); err != nil {
			t.Error(err)
			return
		}
	}
}

// begin begins sessions and leaves them.
func (f *fort) begin(t *testing.T, n int) {
	const body = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"flood","version":"1"}}}`
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			a := newAgent(f.h, f.key)
			defer a.close()
			for left.Add(-1) >= 0 {
				if r, err := a.post(t.Context(), "/mcp", body, nil); err != nil || r.status != served {
					t.Errorf("initialize: %s, %v", r.said(), err)
					return
				}
			}
		})
	}
	all.Wait()
}

package mcp_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/mcp"
)

// oneConn is a listener that gives one connection, and then waits.
type oneConn struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { close(l.closed); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func h2Frame(kind, flags byte, stream uint32, load string) string {
	head := []byte{byte(len(load) >> 16), byte(len(load) >> 8), byte(len(load)), kind, flags}
	return string(binary.BigEndian.AppendUint32(head, stream)) + load
}

// h2Reset sends a POST without a key over HTTP/2, in a bubble. Its headers
// announce so many bytes, which come when the server has nothing more to do, if
// at all.
// It reports whether the stream is reset after its answer.
func h2Reset(t *testing.T, handler http.Handler, announced int, body string) (reset bool) {
	t.Helper()
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	l := &oneConn{make(chan net.Conn), make(chan struct{})}
	ended := make(chan error)
	go func() { ended <- s.Serve(l) }()
	c, there := net.Pipe()
	l.conn <- there
	defer func() { _, _, _ = c.Close(), s.Close(), <-ended }()

	field := func(name, value string) string {
		return "\x00" + string(rune(len(name))) + name + string(rune(len(value))) + value
	}
	headers := "\x83\x86" + field(":path", "/mcp") + field(":authority", "localhost") + field("content-length", fmt.Sprint(announced))
	frames := make(chan [2]byte, 100) // kind and flags, of the stream
	go func() {
		defer close(frames)
		for {
			var head [9]byte
			if _, err := io.ReadFull(c, head[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, c, int64(head[0])<<16|int64(head[1])<<8|int64(head[2])); err != nil {
				return
			}
			if binary.BigEndian.Uint32(head[5:]) == 1 {
				frames <- [2]byte{head[3], head[4]}
			}
		}
	}()
	send := func(text string) {
		if _, err := io.WriteString(c, text); err != nil {
			t.Error(err)
		}
		synctest.Wait()
	}
	send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2Frame(4, 0, 0, "") + h2Frame(1, 4, 1, headers))
	if body != "" {
		send(h2Frame(0, 1, 1, body))
	} else {
		time.Sleep(2 * time.Second)
		synctest.Wait()
	}
	answered := false
	for len(frames) > 0 {
		f := <-frames
		answered = answered || f[0] == 0 && f[1]&1 != 0
		reset = reset || f[0] == 3
	}
	if !answered {
		t.Errorf("a body of %d bytes: no answer", announced)
	}
	return reset
}

// TestRefusalIsNotResetOverHTTP2 is a small request that is denied before its
// body is read: no reset follows the answer, on which curl 7 drops it. The
// controls are bodies that do not come, of which a small one is waited for in
// vain.
func TestRefusalIsNotResetOverHTTP2(t *testing.T) {
	h := newHouse(t)
	handler := h.serveHTTP(h.keeper.Unlock, mcp.HTTPOptions{Loopback: true, Rate: -1}).Handler()
	for _, c := range []struct {
		announced int
		body      string
		want      bool
	}{{2, "{}", false}, {2, "", true}, {1 << 20, "", true}} {
		synctest.Test(t, func(t *testing.T) {
			if got := h2Reset(t, handler, c.announced, c.body); got != c.want {
				t.Errorf("a body of %d bytes: reset %v, want %v", c.announced, got, c.want)
			}
		})
	}
}

package main

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener that gives one connection without a network.
type pipes struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conn:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// TestStalledReaderOfHTTP2IsCut is somebody who speaks HTTP/2, without a key,
// and stops to read. The deadline of an answer is one of its stream; the
// connection stayed, with what was queued for it, until it was idle for 90 s
// and some more. It ends as one of HTTP/1.1 does.
func TestStalledReaderOfHTTP2IsCut(t *testing.T) {
	pair := newCertificate(t, "vault.example.com", 1)
	cert, err := tls.X509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := httpServer(slog.New(slog.DiscardHandler), http.NotFoundHandler())
		s.TLSConfig = newTLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil })
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		ended := make(chan error)
		go func() { ended <- s.ServeTLS(l, "", "") }()
		here, there := net.Pipe()
		l.conn <- there
		c := tls.Client(here, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		go func() { // preface, settings, and a ping that wants an answer
			_, _ = io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678")
		}()
		if _, err := c.Read(make([]byte, 9)); err != nil { // its settings; then no more
			t.Fatal(err)
		}
		time.Sleep(headerTime)
		synctest.Wait()
		if _, err := here.Write(nil); err != nil { // the control: it is patient
			t.Errorf("after %v the connection is gone: %v", headerTime, err)
		}
		time.Sleep(4 * headerTime)
		synctest.Wait()
		if _, err := here.Write(nil); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("after %v the connection is there: %v", 5*headerTime, err)
		}
		_ = here.Close()
		_ = s.Close()
		<-ended
	})
}

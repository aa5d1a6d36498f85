package main

import (
	"net"
	"testing"
)

// TestFullServerClosesWhatIsOver opens connections up to the limit and one more,
// which is closed, until another one leaves.
func TestFullServerClosesWhatIsOver(t *testing.T) {
	for name, limit := range map[string]func(*bounded){
		"of all":         func(c *bounded) { c.all, c.each = 2, 0 },
		"of one address": func(c *bounded) { c.all, c.each = 100, 2 },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			c := newBounded(l, false)
			limit(c)
			taken := make(chan net.Conn, 8)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for {
					conn, err := c.Accept()
					if err != nil {
						return
					}
					_, _ = conn.Write([]byte("in"))
					taken <- conn
				}
			}()
			defer func() { l.Close(); <-ended }()
			enter := func() (net.Conn, bool) {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				n, _ := conn.Read(make([]byte, 2))
				return conn, n == 2
			}
			for i := range 2 {
				if _, ok := enter(); !ok {
					t.Fatalf("connection %d was closed", i+1)
				}
			}
			if _, ok := enter(); ok {
				t.Fatal("a connection over the limit was taken")
			}
			first := <-taken
			first.Close()
			first.Close() // leaves once
			if _, ok := enter(); !ok {
				t.Error("no place is free after one left")
			}
			if _, ok := enter(); ok {
				t.Error("closing twice freed two places")
			}
			for range 2 {
				(<-taken).Close()
			}
			if c.count != 0 || len(c.from) != 0 {
				t.Errorf("when all left, %d are counted from %d addresses", c.count, len(c.from))
			}
		})
	}
}

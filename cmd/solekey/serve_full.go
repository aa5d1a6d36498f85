package main

import (
	"net"
	"net/netip"
	"sync"
)

// How many connections a server holds. What is over a limit is closed at once,
// so that whoever opens many keeps nobody else out, and descriptors are left
// for the store, the private port and the log. A stranger with many addresses,
// which any IPv6 network has, may hold them all for 90 s each without a key: so
// they fit the memory of a container, as in examples.

const (
	connsOfAll   = 8 << 10
	connMemory   = 40 << 10 // of one that is idle, over TLS and HTTP/2: 36 KiB measured
	connsOfOne   = 256      // of one address, where addresses are those of clients
	filesAside   = 128      // descriptors that are not connections of the public port
	leastOfConns = 64
)

// bounded is a listener with limits.
type bounded struct {
	net.Listener
	all, each int // each 0: no limit

	mu    sync.Mutex
	count int
	from  map[netip.Addr]int
}

// newBounded limits l: in all to what the system lets a process open, and each
// address to connsOfOne unless it may stand for many clients.
func newBounded(l net.Listener, shared bool) *bounded {
	c := &bounded{Listener: l, all: connsOfAll, each: connsOfOne, from: map[netip.Addr]int{}}
	if files, ok := maxFiles(); ok {
		c.all = max(min(c.all, files-filesAside), leastOfConns)
	}
	if shared {
		c.each = 0
	}
	return c
}

// Accept implements [net.Listener].
func (c *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
			from = subnet(a.Addr().WithZone("").Unmap())
		}
		if c.enter(from) {
			return &member{Conn: conn, leave: sync.OnceFunc(func() { c.leave(from) })}, nil
		}
		_ = conn.Close()
	}
}

func (c *bounded) enter(from netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count >= c.all || c.each > 0 && c.from[from] >= c.each {
		return false
	}
	c.count++
	c.from[from]++
	return true
}

func (c *bounded) leave(from netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count--
	if c.from[from]--; c.from[from] == 0 {
		delete(c.from, from)
	}
}

// subnet is what counts as one address: of IPv6 the /64, which one customer
// has whole.
func subnet(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	p, _ := a.Prefix(64)
	return p.Addr()
}

// member is a connection of a bounded listener.
type member struct {
	net.Conn
	leave func()
}

// CloseWrite is what the server ends an answer with whose request it did not
// read.
func (m *member) CloseWrite() error {
	if c, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// Close implements [net.Conn].
func (m *member) Close() error {
	defer m.leave()
	return m.Conn.Close()
}

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Ports, and what systemd hands over and is told.
//
// A newer server replaces an older one without a refused connection in two
// ways. With a socket from systemd both have the same queue, so nothing is
// lost when one of them closes it. With --takeover on both, the newer one
// joins the port of the older one and gets every new connection from then on;
// the older one closes an empty queue.

// listen opens a TCP port. Without takeover it must be free, and stays this
// process's. With it, any process of the same user may join, then or later,
// and get the keys of its callers, even one in a sandbox that sees no file of
// ours: so it is the owner's choice.
func listen(ctx context.Context, addr string, takeover bool) (net.Listener, error) {
	if takeover && !canShare {
		return nil, failf(exitUsage, "--takeover does not work on %s", runtime.GOOS)
	}
	var how net.ListenConfig
	how.SetMultipathTCP(false) // whose sockets cannot be told which connections to take
	if takeover {
		how.Control = func(_, _ string, c syscall.RawConn) error { return sharePort(c) }
	}
	l, err := how.Listen(ctx, "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE) && takeover:
		return nil, failf(exitInternal, "%s is in use by something else than a server of this user with --takeover", addr).hint("solekey serve --listen " + defaultListen)
	case errors.Is(err, syscall.EADDRINUSE):
		f := failf(exitInternal, "%s is in use by another program", addr)
		if canShare {
			f.hint("solekey serve --takeover     (if that is a server with --takeover too, which you then stop)")
		}
		return nil, f.hint("solekey serve --listen HOST:PORT")
	case errors.Is(err, syscall.EACCES):
		return nil, failf(exitInternal, "%s: this user may not listen there", addr).hint("solekey serve --listen HOST:PORT     (with a port above 1023)")
	case err != nil:
		return nil, failf(exitInternal, "listening on %s: %v", addr, cause(err))
	}
	if takeover {
		lead(l)
	}
	return l, nil
}

// cause is what the system said, without the words of package net around it.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err
	}
	return err
}

// lead makes new connections come to l where it shares its port with an older
// server. It is a help for upgrades, so a system that refuses it is fine.
func lead(l net.Listener) {
	if tcp, ok := l.(*net.TCPListener); ok {
		if c, err := tcp.SyscallConn(); err == nil {
			_ = preferNewest(c)
		}
	}
}

// isLoopback reports that an address names this machine only.
func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// conns knows what the connections of a server are doing.
type conns struct {
	mu    sync.Mutex
	state map[net.Conn]http.ConnState
}

// track is for http.Server.ConnState.
func (c *conns) track(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s == http.StateClosed || s == http.StateHijacked:
		delete(c.state, conn)
	case c.state == nil:
		c.state = map[net.Conn]http.ConnState{conn: s}
	default:
		c.state[conn] = s
	}
}

// busy reports that a request is running or, if fresh counts, that one may
// be on its way on a connection that has carried none.
func (c *conns) busy(fresh bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.state {
		if s == http.StateActive || fresh && s == http.StateNew {
			return true
		}
	}
	return false
}

// settle waits until nothing is busy: for fresh connections until soon, for
// requests until ctx ends.
func (c *conns) settle(ctx context.Context, soon time.Duration) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	fresh := time.After(soon)
	for waiting := true; c.busy(waiting); {
		select {
		case <-tick.C:
		case <-fresh:
			waiting = false
		case <-ctx.Done():
			return
		}
	}
}

// firstFD is the first descriptor of sd_listen_fds(3).
const firstFD = 3

// systemdListener returns the socket that systemd opened for this process;
// nil if it opened none.
func systemdListener(getenv func(string) string, pid int) (net.Listener, error) {
	if getenv("LISTEN_FDS") == "" || getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	if getenv("LISTEN_FDS") != "1" {
		return nil, failf(exitUsage, "systemd passes more than one socket (LISTEN_FDS), and this server takes one").hint("systemctl cat solekey.socket")
	}
	return givenListener(os.NewFile(firstFD, "LISTEN_FD_3"))
}

// givenListener returns the listener of a descriptor, which it closes. A
// socket unit with Accept=yes passes a connection instead.
func givenListener(f *os.File) (net.Listener, error) {
	defer f.Close() // the listener has a copy
	no := failf(exitUsage, "what systemd passes (LISTEN_FDS) is not a listening socket").hint("systemctl cat solekey.socket     (which has no Accept=yes)")
	l, err := net.FileListener(f)
	if err != nil {
		return nil, no
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close()
		return nil, failf(exitUsage, "the socket from systemd is not of TCP").hint("systemctl cat solekey.socket")
	}
	if c, err := tcp.SyscallConn(); err != nil || !listening(c) {
		_ = l.Close()
		return nil, no
	}
	return l, nil
}

// notifySystemd tells the service manager about this process, by the protocol
// of sd_notify(3). Without a manager that asked for it, nothing happens.
func notifySystemd(getenv func(string) string, state string) error {
	path := getenv("NOTIFY_SOCKET")
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

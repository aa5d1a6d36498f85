package main

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const canShare = true

// sharePort lets several sockets of this user listen on one port.
func sharePort(c syscall.RawConn) error {
	return onFD(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

// preferNewest makes the kernel give every new connection to the second of
// the sockets on a port, which is the newer one of two. By default it spreads
// them, and those in the queue of a socket that closes are reset. With one
// socket left the choice falls on that.
func preferNewest(c syscall.RawConn) error {
	second := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 1}}
	prog := unix.SockFprog{Len: uint16(len(second)), Filter: &second[0]}
	return onFD(c, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog)
	})
}

// listening reports that connections can be accepted.
func listening(c syscall.RawConn) bool {
	on := 0
	err := onFD(c, func(fd int) (err error) {
		on, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		return err
	})
	return err == nil && on == 1
}

func onFD(c syscall.RawConn, do func(fd int) error) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

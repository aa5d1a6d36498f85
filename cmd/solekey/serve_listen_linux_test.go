package main

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestWhatIsNoListenerIsNamed passes what a socket unit can pass by mistake:
// with Accept=yes it is a connection, which the server announced that it
// serves and ended with an internal error.
func TestWhatIsNoListenerIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*os.File{
		"connection": file(t, here), "datagrams": file(t, udp), "bound only": os.NewFile(uintptr(fd), "bound"), "no socket": null(t),
	} {
		got, err := givenListener(f)
		if err == nil {
			got.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "not a listening socket") {
			t.Errorf("%s = %v, want a refusal", name, err)
		}
	}
	if got, err := givenListener(file(t, l)); err != nil { // the control
		t.Errorf("a listening socket = %v", err)
	} else {
		got.Close()
	}
}

func file(t *testing.T, c any) *os.File {
	t.Helper()
	f, err := c.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func null(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

package keyring

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	zalando "github.com/zalando/go-keyring"
)

// Both are ErrUnavailable: the keyring is turned off, or there is no bus to
// reach it by.
var (
	errOff   = fmt.Errorf("%w: turned off", ErrUnavailable)
	errNoBus = fmt.Errorf("%w: no session bus", ErrUnavailable)
)

// osKeyring is the OS keyring under a time limit. After the first call that
// does not return it is not asked again, as the next would wait behind it.
type osKeyring struct {
	off   bool
	limit time.Duration
	stuck atomic.Bool
	ready func() bool

	read  func(service, account string) (string, error)
	write func(service, account, text string) error
	erase func(service, account string) error
}

func newOSKeyring(off bool) *osKeyring {
	return &osKeyring{off: off, limit: osLimit, ready: hasBus, read: zalando.Get, write: zalando.Set, erase: zalando.Delete}
}

// hasBus reports whether there is a way to the OS keyring. Without an address
// the library would start programs to find one.
func hasBus() bool {
	switch runtime.GOOS {
	case "windows", "darwin":
		return true
	}
	if os.Getenv("DBUS_SESSION_BUS_ADDRESS") != "" {
		return true
	}
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, "bus"))
	return err == nil
}

func (o *osKeyring) get(account string) (text string, err error) {
	// The result goes through a channel, as a late one has no reader.
	got := make(chan string, 1)
	err = o.try("", func() error {
		s, err := o.read(service, account)
		got <- s
		return err
	}, nil)
	if err != nil {
		return "", err
	}
	return <-got, nil
}

func (o *osKeyring) set(account, text string) error {
	return o.try(text, func() error { return o.write(service, account, text) },
		func() { o.erase(service, account) })
}

func (o *osKeyring) remove(account string) error {
	return o.try("", func() error { return o.erase(service, account) }, nil)
}

// try runs f within the limit. If f succeeds later, undo is run; nil does
// nothing. text is what no error may contain.
func (o *osKeyring) try(text string, f func() error, undo func()) error {
	switch {
	case o.off:
		return errOff
	case !o.ready():
		return errNoBus
	case o.stuck.Load():
		return fmt.Errorf("%w: no answer", ErrUnavailable)
	}
	done := make(chan error)
	late := make(chan struct{})
	go func() {
		err := guard(f)
		select {
		case done <- err:
		case <-late:
			if err == nil && undo != nil {
				guard(func() error { undo(); return nil })
			}
		}
	}()
	timer := time.NewTimer(o.limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return sentinel(err, text)
	case <-timer.C:
		o.stuck.Store(true)
		close(late)
		return fmt.Errorf("%w: no answer in %v", ErrUnavailable, o.limit)
	}
}

// guard turns a panic of the library into an error, as answers of the bus
// that it does not expect make it panic.
func guard(f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("unexpected answer")
		}
	}()
	return f()
}

// sentinel maps the library's errors to ours.
func sentinel(err error, text string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zalando.ErrNotFound):
		return ErrNone
	case errors.Is(err, zalando.ErrSetDataTooBig):
		return ErrTooLarge
	case text != "" && strings.Contains(err.Error(), text):
		return ErrUnavailable
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, err)
}

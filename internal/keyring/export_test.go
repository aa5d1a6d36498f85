package keyring

import (
	"errors"
	"sync"
	"time"

	zalando "github.com/zalando/go-keyring"
)

// Fake is an OS keyring in memory.
type Fake struct {
	mu    sync.Mutex
	vals  map[string]string
	Err   error         // every call gives it
	Limit int           // bytes of a value; 0: none
	Hang  chan struct{} // calls wait for it to be closed; nil: not
	Calls int
}

func (f *Fake) call() error {
	if f.Hang != nil {
		<-f.Hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Calls++
	return f.Err
}

// Value returns what is stored for account.
func (f *Fake) Value(account string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.vals[account]
}

// Use makes r ask f instead of the OS.
func (f *Fake) Use(r *Ring, limit time.Duration) {
	f.vals = map[string]string{}
	r.os.limit = limit
	r.os.ready = func() bool { return true }
	r.os.read = func(service, account string) (string, error) {
		if err := f.call(); err != nil {
			return "", err
		}
		if v := f.Value(account); v != "" && service == "solekey" {
			return v, nil
		}
		return "", zalando.ErrNotFound
	}
	r.os.write = func(service, account, text string) error {
		if err := f.call(); err != nil {
			return errors.Join(err, errors.New(text)) // a careless library
		}
		if f.Limit > 0 && len(text) > f.Limit {
			return zalando.ErrSetDataTooBig
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.vals[account] = text
		return nil
	}
	r.os.erase = func(service, account string) error {
		if err := f.call(); err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.vals[account] == "" {
			return zalando.ErrNotFound
		}
		delete(f.vals, account)
		return nil
	}
}

// Count returns how many calls have come.
func (f *Fake) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Calls
}

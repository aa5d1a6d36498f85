// Package keyring is where root text and agent keys rest on this machine: in
// the keyring of the operating system, or in a file that only its owner can
// open. A value rests in one place: what is set in one is removed from the
// other.
//
// The OS keyring is asked within a time limit, and not at all where there is
// no session bus, so no call hangs on a machine without a desktop. The package
// stores the value and nothing else, knows nothing of its form, and names it
// in no error. It does not protect a value from the user it belongs to.
package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
)

// MaxText is the size of the largest value in bytes.
const MaxText = 64 << 10

// The errors of this package.
var (
	ErrNone        = errors.New("no key is stored under this name")
	ErrNotPrivate  = errors.New("file is not private")
	ErrUnavailable = errors.New("OS keyring unavailable")
	ErrTooLarge    = errors.New("value too large for a keyring")
)

// Kind says what a value is for.
type Kind string

// The kinds. A Root is named by its store ID in hex, a Profile by its name.
const (
	Root    Kind = "root"
	Profile Kind = "profile"
)

// Where is a place for values.
type Where uint8

// The places. Auto is the OS keyring if it works, else a file; Credential is
// a systemd credential, which is only read.
const (
	Auto Where = iota
	File
	OS
	Credential
)

// Source says where a value rests.
type Source struct {
	Where Where  // File, OS or Credential
	Path  string // of the file, unless Where is OS
}

// String returns the words for people: a path or "OS keyring".
func (s Source) String() string {
	switch s.Where {
	case OS:
		return "OS keyring"
	case Credential:
		return "systemd credential " + s.Path
	}
	return s.Path
}

// Options are the options of [Open]. The zero value is right.
type Options struct {
	NoOS bool         // files only
	Log  func(string) // gets lines for people, never a value; nil: silent
}

// Ring stores values. It is safe for concurrent use, except that of two
// simultaneous changes of one name either may win.
type Ring struct {
	dir string
	log func(string)
	os  *osKeyring
}

// Open returns the ring whose files lie in configDir, which is created when
// the first file is. It does no I/O.
func Open(configDir string, o Options) *Ring {
	if o.Log == nil {
		o.Log = func(string) {}
	}
	return &Ring{dir: configDir, log: o.Log, os: newOSKeyring(o.NoOS)}
}

// Get returns the value and where it was found. Of several places the first
// answers: systemd credential (Root only), OS keyring, file. It gives ErrNone
// if there is none; the error then also says why the OS keyring could not be
// asked, if it could not.
func (r *Ring) Get(k Kind, name string) (string, Source, error) {
	path, err := r.path(k, name)
	if err != nil {
		return "", Source{}, err
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); k == Root && dir != "" {
		src := Source{Credential, filepath.Join(dir, "solekey-root")}
		if text, err := readFile(src.Path, MaxText, checkCredential); !errors.Is(err, fs.ErrNotExist) {
			return string(text), src, err
		}
	}
	text, osErr := r.os.get(account(k, name))
	if osErr == nil {
		return text, Source{Where: OS}, nil
	}
	b, err := ReadPrivate(path, MaxText)
	switch {
	case err == nil:
		return string(b), Source{File, path}, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", Source{}, err
	case errors.Is(osErr, ErrNone) || errors.Is(osErr, errOff):
		return "", Source{}, ErrNone
	}
	return "", Source{}, fmt.Errorf("%w (%w)", ErrNone, osErr)
}

// Set stores text under the name, in place of what was there, and removes it
// from the other place.
func (r *Ring) Set(k Kind, name, text string, where Where) (Source, error) {
	path, err := r.path(k, name)
	switch {
	case err != nil:
		return Source{}, err
	case text == "":
		return Source{}, errors.New("storing a key: it is empty")
	case len(text) > MaxText:
		return Source{}, fmt.Errorf("storing a key: %w", ErrTooLarge)
	case where > OS:
		return Source{}, errors.New("storing a key: a credential is read-only")
	}
	asked := where != File
	if asked {
		err = r.os.set(account(k, name), text)
		if err == nil {
			return Source{Where: OS}, r.removeFile(path)
		}
		if where == OS {
			return Source{}, fmt.Errorf("storing a key: %w", err)
		}
		if !errors.Is(err, errOff) {
			r.log(fmt.Sprintf("%v: the key rests in %s", err, path))
		}
	}
	down := asked && errors.Is(err, ErrUnavailable)
	if err := writePrivate(path, []byte(text)); err != nil {
		return Source{}, fmt.Errorf("storing a key: %w", err)
	}
	if down {
		return Source{File, path}, nil
	}
	return Source{File, path}, r.removeOS(account(k, name))
}

// removeFile removes the file at path, if there is one.
func (r *Ring) removeFile(path string) error {
	if err := deletePrivate(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the older copy: %w", err)
	}
	return nil
}

// removeOS removes the copy in an OS keyring that answers. One that does not
// answer may keep an older copy, which would be found first once it does.
func (r *Ring) removeOS(account string) error {
	err := r.os.remove(account)
	switch {
	case err == nil || errors.Is(err, ErrNone) || errors.Is(err, errOff) || errors.Is(err, errNoBus):
		return nil
	case errors.Is(err, ErrUnavailable):
		r.log(fmt.Sprintf("%v: an older copy may remain there", err))
		return nil
	}
	return fmt.Errorf("removing the older copy: %w", err)
}

// Delete removes the value from the OS keyring and the file. It gives ErrNone
// if it was in neither.
func (r *Ring) Delete(k Kind, name string) error {
	path, err := r.path(k, name)
	if err != nil {
		return err
	}
	osErr := r.os.remove(account(k, name))
	err = deletePrivate(path)
	switch {
	case err == nil && (osErr == nil || errors.Is(osErr, ErrNone) || errors.Is(osErr, ErrUnavailable)):
		return nil
	case errors.Is(err, fs.ErrNotExist) && osErr == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist) && err != nil:
		return fmt.Errorf("removing a key: %w", err)
	case errors.Is(osErr, ErrNone) || errors.Is(osErr, errOff):
		return ErrNone
	}
	return fmt.Errorf("%w (%w)", ErrNone, osErr)
}

// path returns the file of a value, or an error for a name that is none.
func (r *Ring) path(k Kind, name string) (string, error) {
	switch k {
	case Root:
		if _, err := identity.ParseID(name); err != nil || name != strings.ToLower(name) {
			return "", errors.New("a root is named by a store ID of 32 hex digits")
		}
		return filepath.Join(r.dir, "root-"+name+".key"), nil
	case Profile:
		if err := identity.CheckName(name); err != nil {
			return "", err
		}
		return filepath.Join(r.dir, "profiles", name+".key"), nil
	}
	return "", errors.New("unknown kind of key")
}

// service is the name of this program in the OS keyring.
const service = "solekey"

func account(k Kind, name string) string { return string(k) + ":" + name }

// osLimit is how long the OS keyring may take. Who has to unlock it first
// repeats the command.
const osLimit = 2 * time.Second

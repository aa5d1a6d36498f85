package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/bridge"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
)

// A profile is a local name for "this store, this identity, this key", where
// the store is a data directory or the URL of an endpoint. All but the key is
// in profiles/NAME.json of the config directory; the key is in the OS keyring
// or in profiles/NAME.key.

// profile is the file of a profile. It holds no secret.
type profile struct {
	Store    string `json:"store,omitempty"`    // data directory, absolute; empty if remote
	URL      string `json:"url,omitempty"`      // of the endpoint; empty if local
	Identity string `json:"identity,omitempty"` // name, for people; an endpoint does not tell it
	ID       string `json:"id"`                 // what counts

	name string
}

// remote reports that the vault is behind an endpoint, not on this machine.
func (p profile) remote() bool { return p.URL != "" }

// valid reports that a profile leads to one place.
func (p profile) valid() bool {
	if _, err := identity.ParseID(p.ID); err != nil {
		return false
	}
	if !p.remote() {
		return filepath.IsAbs(p.Store)
	}
	_, err := bridge.ParseEndpoint(p.URL)
	return err == nil && p.Store == ""
}

const (
	profileDir  = "profiles"
	profileExt  = ".json"
	maxProfile  = 16 << 10
	maxKeyFile  = 4 << 10
	privateMode = 0o600
)

// loadProfile reads a profile that leads to a store on this machine; its error
// wraps fs.ErrNotExist if there is none.
func (a *app) loadProfile(name string) (profile, error) {
	p, err := a.anyProfile(name)
	if err == nil && p.remote() {
		return profile{}, failf(exitUsage, "profile %s is remote: this machine has no store for it; run the command where the store is", name).
			hint("solekey profile show "+name, "solekey mcp --profile "+name)
	}
	return p, err
}

// anyProfile reads a profile, local or remote; its error wraps fs.ErrNotExist
// if there is none.
func (a *app) anyProfile(name string) (profile, error) {
	if err := identity.CheckName(name); err != nil {
		return profile{}, failf(exitUsage, "--profile: %v", err)
	}
	path, err := a.conf.configPath(profileDir, name+profileExt)
	if err != nil {
		return profile{}, err
	}
	b, err := keyring.ReadOwn(path, maxProfile)
	if errors.Is(err, keyring.ErrNotPrivate) || errors.Is(err, keyring.ErrTooLarge) {
		return profile{}, failf(exitUsage, "profile %s: %v", name, err).hint("solekey profile rm " + name)
	}
	if err != nil {
		return profile{}, fmt.Errorf("reading profile: %w", err)
	}
	if len(b) == 0 {
		return profile{}, unfinished(name)
	}
	p := profile{name: name}
	if err := json.Unmarshal(b, &p); err != nil {
		return profile{}, failf(exitUsage, "%s is not a profile", tilde(path)).hint("solekey profile rm " + name)
	}
	if !p.valid() {
		return profile{}, failf(exitUsage, "%s is not a profile", tilde(path)).hint("solekey profile rm " + name)
	}
	return p, nil
}

// unfinished is the refusal of a profile whose name was taken and whose key
// was not made yet, or never.
func unfinished(name string) *failure {
	return failf(exitNotFound, "profile %s is being made by another command, or was left unfinished", name).hint("solekey profile rm " + name)
}

// missingProfile words the absence of a profile that was asked for.
func missingProfile(name string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return failf(exitNotFound, "no profile %s on this machine", name).hint("solekey profile list", "solekey identity create "+name)
}

// profiles returns the local profiles that can be read, by name.
func (a *app) profiles() ([]profile, error) {
	all, err := a.allProfiles()
	return slices.DeleteFunc(all, profile.remote), err
}

// allProfiles returns all profiles that can be read, by name.
func (a *app) allProfiles() ([]profile, error) {
	dir, err := a.conf.configPath(profileDir)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing profiles: %w", err)
	}
	var out []profile
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), profileExt)
		if !ok || identity.CheckName(name) != nil {
			continue
		}
		if p, err := a.anyProfile(name); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// freeProfile refuses a name that is taken, before anything is made.
func (a *app) freeProfile(name string) error {
	p, err := a.anyProfile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		f := *explain(err)
		f.exit = exitExists
		return &f
	}
	f := failf(exitExists, "profile %s exists already", name).hint("solekey profile rm "+name, "the same command with --profile OTHER     (keeps both)")
	if p.remote() {
		f.message += ", for " + p.URL
		return f
	}
	if dir, err := a.conf.dataDir(); err == nil && dir != p.Store {
		f.message += ", for a store in " + tilde(p.Store)
	}
	if _, err := os.Lstat(p.Store); err != nil {
		f.message += " that is gone"
	}
	return f
}

// freeKey refuses a name under which a key rests without a profile: it may be
// the only one that opens some vault.
func (a *app) freeKey(name string) error {
	ring, err := a.ring()
	if err != nil {
		return err
	}
	if _, _, err := ring.Get(keyring.Profile, name); errors.Is(err, keyring.ErrNone) {
		return nil
	}
	return failf(exitExists, "a key is stored as %s already, without a profile", name).
		hint("solekey profile rm "+name, "the same command with --profile OTHER     (keeps both)")
}

// keyDest is where a key that was made goes: to stdout, or into a profile.
type keyDest struct {
	print bool
	prof  profile
	fresh bool           // the profile is made with it
	src   keyring.Source // where the key rests; before keep, where it is to rest

	reserved string // file that keeps the name of a fresh profile until keep; empty: none
}

// newKeyDest decides where a further key of an identity goes: stdout, the
// profile that --profile names, or the one that the proof came from.
func (a *app) newKeyDest(dir string, i vault.Info, old intake, print bool) (keyDest, error) {
	d := keyDest{print: print, prof: old.prof, src: old.src}
	switch {
	case print:
		return d, nil
	case a.conf.profile != "" && a.conf.profile != old.prof.name:
		d = freshDest(dir, i.ID, i.Name, a.conf.profile)
	case old.prof.name == "":
		return d, failf(exitUsage, "where does the new key go?").hint("the same command with --print-key", "the same command with --profile OTHER")
	}
	return d, d.ready(a)
}

func freshDest(dir string, id identity.ID, name, prof string) keyDest {
	return keyDest{fresh: true, prof: profile{Store: dir, Identity: name, ID: id.String(), name: prof}}
}

// ready refuses a destination that cannot take the key, before one is made:
// a key that cannot be kept would lock its vault.
func (d *keyDest) ready(a *app) error {
	if d.print {
		return nil
	}
	if d.fresh {
		if err := a.freeProfile(d.prof.name); err != nil {
			return err
		}
		if err := a.freeKey(d.prof.name); err != nil {
			return err
		}
	}
	dir, err := a.makeConfigDir(profileDir)
	if err != nil {
		return err
	}
	probe, err := os.CreateTemp(dir, ".probe.*")
	if err != nil {
		return fmt.Errorf("writing a profile: %w", err)
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil || !d.fresh {
		return err
	}
	return d.reserve(filepath.Join(dir, d.prof.name+profileExt))
}

// reserve takes the name of a fresh profile, so that of two commands at the
// same time only one makes a key for it. release gives it back.
func (d *keyDest) reserve(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
	if errors.Is(err, fs.ErrExist) {
		f := unfinished(d.prof.name)
		f.exit = exitExists
		return f
	}
	if err != nil {
		return fmt.Errorf("writing a profile: %w", err)
	}
	d.reserved = path
	return f.Close()
}

// release gives back a name for which no key was kept. It may be repeated.
func (d *keyDest) release() {
	if d.reserved != "" {
		_ = os.Remove(d.reserved)
		d.reserved = ""
	}
}

// keep puts the key into its profile. Of a fresh profile the key comes first
// and the name last, so that a profile that can be seen has its key. Of one
// that passes to another identity the key comes last: until then the one it
// holds is the proof for the identity before.
func (d *keyDest) keep(a *app, key identity.Key) error {
	if d.print {
		return nil
	}
	moved := !d.fresh && d.prof.ID != key.Identity().String()
	d.prof.ID = key.Identity().String()
	if moved {
		if err := d.describe(a); err != nil {
			return err
		}
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	if d.src, err = ring.Set(keyring.Profile, d.prof.name, key.Reveal(), d.src.Where); err != nil {
		return fmt.Errorf("storing the key: %w", err)
	}
	if !d.fresh {
		return nil
	}
	if err := d.describe(a); err != nil {
		return errors.Join(err, ring.Delete(keyring.Profile, d.prof.name))
	}
	d.reserved = ""
	return nil
}

// makeConfigDir makes a directory of the config directory, which a hosted
// endpoint may not be able to write.
func (a *app) makeConfigDir(parts ...string) (string, error) {
	dir, err := a.conf.configPath(parts...)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", failf(exitUnavailable, "the config directory cannot be written: %v", err).
			hint("the same command with XDG_CONFIG_HOME=DIR before it, or, where it makes a key, with --print-key")
	}
	return dir, nil
}

// describe writes the file of the profile.
func (d *keyDest) describe(a *app) error {
	b, err := json.MarshalIndent(d.prof, "", "  ")
	if err != nil {
		return err
	}
	path, err := a.conf.configPath(profileDir, d.prof.name+profileExt)
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}

// write prints the key on stdout: the only thing there.
func (d *keyDest) write(a *app, key identity.Key) error {
	_, err := io.WriteString(a.stdout, key.Reveal()+"\n")
	return err
}

// result describes the key in JSON.
func (d *keyDest) result(key identity.Key, g identity.Grant) keyResult {
	out := keyResult{
		Identity: d.prof.Identity, ID: key.Identity().String(), KeyID: key.Slot().String(),
		Scopes: g.Scopes.Words(), Labels: globWords(g.Globs), Expires: at(g.Expires),
	}
	if d.print {
		out.Key = key.Reveal()
	} else {
		out.Profile, out.Stored = d.prof.name, placeOf(d.src)
	}
	return out
}

// whereWords says where a key rests, for people.
func whereWords(src keyring.Source) string {
	switch src.Where {
	case keyring.OS:
		return "in the OS keyring"
	case keyring.Credential:
		return "in a systemd credential"
	}
	return "in a file that only you can read"
}

// placeOf says where a key rests, in one word.
func placeOf(src keyring.Source) string {
	switch src.Where {
	case keyring.OS:
		return "keyring"
	case keyring.Credential:
		return "credential"
	}
	return "file"
}

// reveal returns a key as text, for the keyring or the endpoint it belongs to.
func reveal(in intake) string { return in.key.Reveal() }

// checkProfileName refuses what cannot name a profile.
func checkProfileName(name string) error {
	if identity.CheckName(name) != nil {
		return failf(exitUsage, "not a profile name: %v", identity.ErrMalformedName)
	}
	return nil
}

package main

import (
	"cmp"
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
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
)

// A profile is a local name for "this store, this identity, this key". The
// first two are in profiles/NAME.json of the config directory; the key is in
// the OS keyring or in profiles/NAME.key.

// profile is the file of a profile. It holds no secret.
type profile struct {
	Store    string `json:"store"`    // data directory, absolute
	Identity string `json:"identity"` // name, for people
	ID       string `json:"id"`       // what counts

	name string
}

const (
	profileDir  = "profiles"
	profileExt  = ".json"
	maxProfile  = 16 << 10
	maxKeyFile  = 4 << 10
	privateMode = 0o600
)

// loadProfile reads one profile; its error wraps fs.ErrNotExist if there is
// none.
func (a *app) loadProfile(name string) (profile, error) {
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
	if _, err := identity.ParseID(p.ID); err != nil || !filepath.IsAbs(p.Store) {
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

// profiles returns all profiles that can be read, by name.
func (a *app) profiles() ([]profile, error) {
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
		if p, err := a.loadProfile(name); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// freeProfile refuses a name that is taken, before anything is made.
func (a *app) freeProfile(name string) error {
	p, err := a.loadProfile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		f := *explain(err)
		f.exit = exitExists
		return &f
	}
	f := failf(exitExists, "profile %s exists already", name)
	if dir, err := a.conf.dataDir(); err == nil && dir != p.Store {
		f.message += ", for a store in " + tilde(p.Store)
	}
	if _, err := os.Lstat(p.Store); err != nil {
		f.message += " that is gone"
	}
	return f.hint("solekey profile rm "+name, "--profile OTHER to keep both")
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
		hint("solekey profile rm "+name, "--profile OTHER to keep both")
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
		return d, failf(exitUsage, "where does the new key go?").hint("--print-key", "--profile OTHER")
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
	dir, err := a.conf.configPath(profileDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the profile directory: %w", err)
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

// keep puts the key into its profile. The key comes first and the name last,
// so that a profile that can be seen has its key.
func (d *keyDest) keep(a *app, key identity.Key) error {
	if d.print {
		return nil
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
	d.prof.ID = key.Identity().String()
	b, err := json.MarshalIndent(d.prof, "", "  ")
	if err != nil {
		return err
	}
	path, err := a.conf.configPath(profileDir, d.prof.name+profileExt)
	if err != nil {
		return err
	}
	if err := writeFile(path, append(b, '\n')); err != nil {
		return errors.Join(err, ring.Delete(keyring.Profile, d.prof.name))
	}
	d.reserved = ""
	return nil
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

// writeFile replaces a file by way of a temporary one, readable by its owner
// alone.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
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

// intake is a key with its origin.
type intake struct {
	key  identity.Key
	from string  // what to name in messages
	prof profile // zero unless the key came from a profile
	src  keyring.Source
}

var errTwoKeys = failf(exitUsage, "two sources of a key were given: use one of --profile, --api-key-file, --api-key-fd, %s, %s", envAPIKeyFile, envAPIKey).
	hint("unset "+envAPIKeyFile+" "+envAPIKey, "solekey profile list")

// agentKey returns the key that an agent's command acts with: that of
// --profile, a key file, a descriptor, the environment, in this order; else
// that of the profile fallback, if not empty. Two at once are refused.
func (a *app) agentKey(k keyFlags, fallback string) (intake, error) {
	given := 0
	for _, on := range []bool{a.conf.profile != "", k.file != "", k.fd >= 0, a.conf.envKeyFile != "", a.conf.envKey != ""} {
		if on {
			given++
		}
	}
	if given > 1 {
		return intake{}, errTwoKeys
	}
	switch {
	case a.conf.profile != "":
		return a.profileKey(a.conf.profile)
	case k.file != "":
		return keyFile(k.file, "--api-key-file")
	case k.fd >= 0:
		return keyDescriptor(k.fd)
	case a.conf.envKeyFile != "":
		return keyFile(a.conf.envKeyFile, envAPIKeyFile)
	case a.conf.envKey != "":
		a.warnEnvironment()
		return parseIntake(a.conf.envKey, envAPIKey)
	case fallback != "":
		return a.profileKey(fallback)
	}
	return intake{}, failf(exitUsage, "whose key? no --profile, key file or descriptor was given").hint("--profile NAME", "solekey profile list")
}

func (a *app) warnEnvironment() {
	if a.conf.envHidden {
		a.warn("%s is removed from this process, and the one that set it may still show it; prefer --profile or --api-key-file", envAPIKey)
		return
	}
	a.warn("%s stays visible to other programs of this account; prefer --profile or --api-key-file", envAPIKey)
}

// profileKey returns the key of a profile.
func (a *app) profileKey(name string) (intake, error) {
	p, err := a.loadProfile(name)
	if err != nil {
		return intake{}, missingProfile(name, err)
	}
	ring, err := a.ring()
	if err != nil {
		return intake{}, err
	}
	text, src, err := ring.Get(keyring.Profile, name)
	if errors.Is(err, keyring.ErrNone) {
		return intake{prof: p}, failf(exitNotFound, "profile %s has no key on this machine", name).hint("solekey profile rm "+name, "solekey identity create OTHER")
	}
	if err != nil {
		return intake{prof: p}, unusableKey("profile "+name, err)
	}
	in, err := parseIntake(text, "profile "+name)
	in.prof, in.src = p, src
	return in, err
}

// unusableKey words a key file that is refused. The ring names the file and
// what is wrong with it.
func unusableKey(what string, err error) error {
	return failf(exitUsage, "%s: %v", what, err).hint(anotherKey()...)
}

// anotherKey is how to go on when the key that was given is of no use.
func anotherKey() []string {
	return []string{"solekey profile list     (then --profile NAME)", "solekey identity rotate NAME --profile NEW"}
}

func keyFile(path, what string) (intake, error) {
	b, err := keyring.ReadPrivate(path, maxKeyFile)
	if err != nil {
		return intake{}, unusableKey(what, err)
	}
	defer clear(b)
	return parseIntake(string(b), what)
}

// keyDescriptor reads a key from an inherited descriptor to its end, and
// closes it.
func keyDescriptor(fd int) (intake, error) {
	f := os.NewFile(uintptr(fd), "api-key-fd")
	if f == nil {
		return intake{}, failf(exitUsage, "--api-key-fd: not a descriptor").hint(anotherKey()...)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return intake{}, failf(exitUsage, "--api-key-fd: the descriptor cannot be read").hint(anotherKey()...)
	}
	defer clear(b)
	return parseIntake(string(b), "--api-key-fd")
}

// parseIntake reads key text. What is wrong is named without the text.
func parseIntake(text, what string) (intake, error) {
	key, err := identity.ParseKey(text)
	if err != nil {
		return intake{}, failf(exitUsage, "%s: %v", what, err).hint(anotherKey()...)
	}
	return intake{key: key, from: what}, nil
}

// proof returns a live key of an identity for what the owner alone cannot do:
// --api-key-file or --api-key-fd, else the key of a profile of that identity
// on this machine, that of the same name first.
func (a *app) proof(k keyFlags, id identity.ID, name string) (intake, error) {
	if k.file != "" && k.fd >= 0 {
		return intake{}, errTwoKeys
	}
	if k.file != "" {
		return keyFile(k.file, "--api-key-file")
	}
	if k.fd >= 0 {
		return keyDescriptor(k.fd)
	}
	all, err := a.profiles()
	if err != nil {
		return intake{}, err
	}
	if i := slices.IndexFunc(all, func(p profile) bool { return p.name == name }); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	var broken error
	for _, p := range all {
		if p.ID != id.String() {
			continue
		}
		in, err := a.profileKey(p.name)
		if err == nil {
			return in, nil
		}
		broken = cmp.Or(broken, err)
	}
	if broken != nil {
		return intake{}, broken
	}
	return intake{}, failf(exitRefused, "rotating or adding a key needs a current key of %s: the owner cannot open this vault", name).
		hint("solekey identity rotate " + name + " --api-key-file FILE --print-key")
}

// checkProfileName refuses what cannot name a profile.
func checkProfileName(name string) error {
	if identity.CheckName(name) != nil {
		return failf(exitUsage, "not a profile name: %v", identity.ErrMalformedName)
	}
	return nil
}

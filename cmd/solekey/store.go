package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// pendingName is a file in the data directory that exists from the first step
// of init to its last. It holds the store ID, so that a rerun finds the root
// text that was put away before.
const pendingName = "init.pending"

// ring opens what keeps root text and agent keys.
func (a *app) ring() (*keyring.Ring, error) {
	dir, err := a.conf.configPath()
	if err != nil {
		return nil, err
	}
	return keyring.Open(dir, keyring.Options{NoOS: a.conf.noKeyring, Log: func(l string) { a.warn("%s", l) }}), nil
}

// storeDir returns the data directory of this command: --home, else that of
// --profile, else the environment's or the default one.
func (a *app) storeDir() (string, error) {
	if a.conf.home == "" && a.conf.profile != "" {
		p, err := a.loadProfile(a.conf.profile)
		if err == nil {
			return p.Store, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return a.conf.dataDir()
}

// owner opens the owner's half of the store. The caller closes the keeper.
func (a *app) owner() (*vault.Keeper, error) {
	dir, err := a.storeDir()
	if err != nil {
		return nil, err
	}
	return a.openStore(dir)
}

// openStore opens the store in dir: no lock is taken and no root is read
// before a call needs them.
func (a *app) openStore(dir string) (*vault.Keeper, error) {
	return a.openWith(dir, bolt.Options{})
}

// openWith is openStore with options of the engine.
func (a *app) openWith(dir string, o bolt.Options) (*vault.Keeper, error) {
	ring, err := a.ring()
	if err != nil {
		return nil, err
	}
	if err := isPlace(dir); err != nil {
		return nil, err
	}
	if cutOff(dir) {
		return nil, errCutOff(dir)
	}
	_, err = os.Lstat(filepath.Join(dir, pendingName))
	pending := err == nil
	b, err := bolt.Open(dir, o)
	if errors.Is(err, fs.ErrNotExist) && !pending {
		if remains(dir) {
			return nil, errLost(dir)
		}
		return nil, failf(exitUnavailable, "no store in %s", tilde(dir)).hint(initHint(a, dir))
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && pending && isEmpty(b) {
		if b != nil {
			_ = b.Close()
		}
		return nil, failf(exitUnavailable, "the set-up of the store in %s was interrupted", tilde(dir)).hint(initHint(a, dir))
	}
	if err != nil {
		return nil, err
	}
	return vault.Open(b, rootFrom(ring), vault.Options{Now: a.now}), nil
}

// remains reports whether a directory without a database was one of a store:
// its shred keys or its log are there.
func remains(dir string) bool {
	if _, err := os.Lstat(filepath.Join(dir, "vault.db")); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	for _, name := range []string{"vault.cells", "audit.jsonl"} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// errLost is what commands say of it: to make a store anew would be the wrong
// advice.
func errLost(dir string) *failure {
	return failf(exitUnavailable, "%s: vault.db is missing, other files of a store are there", tilde(dir)).hint(restoreBeside(dir)...)
}

// isEmpty reports that a store holds no identity: the marker of an
// interrupted set-up counts in such a one only. Beside identities it is stale
// or a stranger's, and must not keep anybody from revoking.
func isEmpty(b *bolt.Store) bool {
	found, err := b.Identities(context.Background(), identity.ID{}, 1)
	return err == nil && len(found) == 0
}

// isPlace refuses a data directory that is something else, or that a repair
// was about to give its name to.
func isPlace(dir string) error {
	if halfSwapped(dir) {
		return errHalfSwapped(dir)
	}
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		return failf(exitUnavailable, "the data directory %s is not a directory", tilde(dir)).hint("solekey --home DIR COMMAND", "unset "+envHome)
	}
	return nil
}

// The waits of a command that must get through. After waitTold it says whom
// it waits for.
const (
	waitLong = 30 * time.Second
	waitTold = 2 * time.Second
)

// patient opens the store for a command that must get through: it waits long
// for its turn, and says whom it waits for.
func (a *app) patient(ctx context.Context) (*vault.Keeper, error) {
	dir, err := a.storeDir()
	if err != nil {
		return nil, err
	}
	k, err := a.openStore(dir)
	if err != nil {
		return nil, err
	}
	_, err = k.Identities(ctx) // waits as long as every command
	if !errors.Is(err, storage.ErrUnavailable) {
		return k, nil // what is wrong shows at the next call
	}
	if err := k.Close(); err != nil {
		return nil, err
	}
	a.warn("waiting for %s, at most %v", holder(err).who(), waitLong)
	return a.openWith(dir, bolt.Options{TurnTimeout: waitLong - waitTold})
}

// turn is who has the turn in the data directory, as the engine's error names
// it; the zero turn is unknown.
type turn struct{ pid, since string }

// holder finds the process that an error of the engine names.
func holder(err error) turn {
	if err == nil || !errors.Is(err, storage.ErrUnavailable) {
		return turn{}
	}
	_, rest, ok := strings.Cut(err.Error(), "held by ")
	words := strings.Fields(rest)
	if !ok || len(words) < 4 || (words[0] != "pid" && words[0] != "process") || words[2] != "since" || strings.Trim(words[1], "0123456789") != "" {
		return turn{}
	}
	return turn{pid: words[1], since: strings.TrimRight(words[3], ":,;")}
}

func (t turn) who() string {
	if t.pid == "" {
		return "another process, which holds the store"
	}
	return fmt.Sprintf("process %s, which holds the store since %s", t.pid, t.since)
}

// find returns the identity of this name or ID. Names of damaged identities
// are not known, so where there are some, nobody can say that the name is
// none.
func (a *app) find(ctx context.Context, k *vault.Keeper, name string) (vault.Info, error) {
	if _, err := identity.ParseID(name); err != nil && identity.CheckName(name) != nil {
		return vault.Info{}, failf(exitUsage, "not the name of an identity: %v", identity.ErrMalformedName).hint("solekey identity list")
	}
	info, err := k.Find(ctx, name)
	if errors.Is(err, vault.NotFound) {
		if hidden := a.unreadable(ctx, k); hidden != nil {
			return vault.Info{}, hidden
		}
	}
	return info, err
}

// unreadable says how many identities cannot be opened, as the reason for not
// finding one; nil if all can.
func (a *app) unreadable(ctx context.Context, k *vault.Keeper) error {
	all, err := k.Identities(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, i := range all {
		if i.Damaged {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return failf(exitUnavailable, "no such identity among those that can be read, and %s cannot be opened", count(n, "identity")).hint("solekey doctor")
}

// initHint is the command that makes a store in dir.
func initHint(a *app, dir string) string {
	if dir == a.conf.dataBase || a.conf.home == "" && a.conf.envHome != "" {
		return "solekey init"
	}
	return "solekey init --home " + dir
}

// errNoRoot reports a store whose root text rests nowhere on this machine.
var errNoRoot = &failure{
	exit: exitUnavailable, message: "the root key of this store is not on this machine: nothing in it can be opened",
	try: []string{"solekey doctor"},
}

// rootFrom returns the function that finds the root text of a store.
func rootFrom(ring *keyring.Ring) vault.RootSource {
	return func(_ context.Context, store identity.ID) (vault.Root, error) {
		text, _, err := ring.Get(keyring.Root, store.String())
		if errors.Is(err, keyring.ErrNone) {
			return vault.Root{}, errNoRoot
		}
		if errors.Is(err, keyring.ErrNotPrivate) || errors.Is(err, keyring.ErrTooLarge) || errors.Is(err, fs.ErrPermission) {
			return vault.Root{}, failf(exitUnavailable, "reading the root key: %v", err) // names a path and what is wrong with it
		}
		if err != nil {
			return vault.Root{}, fmt.Errorf("reading the root key: %w", err)
		}
		return vault.ParseRoot(text)
	}
}

// one returns the identity that an owner's command is about: --identity, else
// that of --profile, else the only one, else what a person answers.
func (a *app) one(ctx context.Context, k *vault.Keeper) (vault.Info, error) {
	all, err := a.several(ctx, k)
	if err != nil {
		return vault.Info{}, err
	}
	if len(all) > 1 {
		return vault.Info{}, failf(exitUsage, "this command takes one identity, and %s match", count(len(all), "identity")).hint("solekey identity list")
	}
	return all[0], nil
}

// several returns the identities that an owner's command is about, at least
// one; globs in --identity are matched against the names of active ones.
func (a *app) several(ctx context.Context, k *vault.Keeper) ([]vault.Info, error) {
	if len(a.conf.identities) > 0 {
		return a.named(ctx, k)
	}
	if a.conf.profile != "" {
		p, err := a.loadProfile(a.conf.profile)
		if err != nil {
			return nil, missingProfile(a.conf.profile, err)
		}
		info, err := a.find(ctx, k, p.ID)
		return []vault.Info{info}, err
	}
	active, err := a.active(ctx, k)
	switch {
	case err != nil:
		return nil, err
	case len(active) == 0:
		if err := a.unreadable(ctx, k); err != nil {
			return nil, err
		}
		return nil, failf(exitNotFound, "no identity yet").hint("solekey identity create NAME")
	case len(active) == 1:
		return active, nil
	}
	return a.askIdentity(ctx, active)
}

// named resolves --identity, without doubles, in the order of the flags.
func (a *app) named(ctx context.Context, k *vault.Keeper) ([]vault.Info, error) {
	var out []vault.Info
	seen := map[identity.ID]bool{}
	add := func(i vault.Info) {
		if !seen[i.ID] {
			seen[i.ID] = true
			out = append(out, i)
		}
	}
	for _, name := range a.conf.identities {
		if !strings.ContainsAny(name, "*?") {
			info, err := a.find(ctx, k, name)
			if err != nil {
				return nil, err
			}
			add(info)
			continue
		}
		glob, err := identity.ParseGlob(name)
		if err != nil {
			return nil, failf(exitUsage, "--identity: not a name or glob").hint("solekey identity list")
		}
		active, err := a.active(ctx, k)
		if err != nil {
			return nil, err
		}
		matched := false
		for _, i := range active {
			if glob.Match(i.Name) {
				matched = true
				add(i)
			}
		}
		if !matched {
			if err := a.unreadable(ctx, k); err != nil {
				return nil, err
			}
			return nil, failf(exitNotFound, "no identity matches --identity").hint("solekey identity list")
		}
	}
	return out, nil
}

// active returns the identities whose vault can be used, ordered by name.
func (a *app) active(ctx context.Context, k *vault.Keeper) ([]vault.Info, error) {
	all, err := k.Identities(ctx)
	if err != nil {
		return nil, err
	}
	var out []vault.Info
	for _, i := range all {
		if !i.Damaged && i.Status == identity.Active {
			out = append(out, i)
		}
	}
	sortByName(out)
	return out, nil
}

// askIdentity lets a person choose.
func (a *app) askIdentity(ctx context.Context, active []vault.Info) ([]vault.Info, error) {
	t, err := openTerminal()
	if err != nil {
		return nil, needsFlag("which identity's vault?", "--identity NAME")
	}
	defer t.Close()
	names := make([]string, len(active))
	for i, info := range active {
		names[i] = info.Name
	}
	answer, err := t.ask(ctx, "identity ("+strings.Join(names, ", ")+"): ")
	if err != nil {
		return nil, err
	}
	for _, i := range active {
		if i.Name == answer {
			return []vault.Info{i}, nil
		}
	}
	return nil, failf(exitNotFound, "no such identity").hint("solekey identity list")
}

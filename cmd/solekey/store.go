package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/harden"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// pendingName is a file in the data directory that exists from the first step
// of init to its last. It holds the store ID, so that a rerun finds the root
// text that was put away before.
const pendingName = "init.pending"

// ring opens what keeps root text and agent keys. From here on the process
// handles secrets, so it hides its memory from others first.
func (a *app) ring() (*keyring.Ring, error) {
	if err := harden.Process(); err != nil {
		return nil, failf(exitInternal, "protecting the process: %v", err)
	}
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
	ring, err := a.ring()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, pendingName)); err == nil {
		return nil, failf(exitUnavailable, "the set-up of the store in %s was interrupted", tilde(dir)).hint(initHint(a, dir))
	}
	b, err := bolt.Open(dir, bolt.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failf(exitUnavailable, "no store in %s", tilde(dir)).hint(initHint(a, dir))
	}
	if err != nil {
		return nil, err
	}
	return vault.Open(b, rootFrom(ring), vault.Options{Now: a.now}), nil
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
		info, err := k.Find(ctx, p.ID)
		return []vault.Info{info}, err
	}
	active, err := a.active(ctx, k)
	switch {
	case err != nil:
		return nil, err
	case len(active) == 0:
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
			info, err := k.Find(ctx, name)
			if err != nil {
				return nil, err
			}
			add(info)
			continue
		}
		glob, err := identity.ParseGlob(name)
		if err != nil {
			return nil, failf(exitUsage, "--identity: not a name or glob")
		}
		active, err := a.active(ctx, k)
		if err != nil {
			return nil, err
		}
		before := len(out)
		for _, i := range active {
			if glob.Match(i.Name) {
				add(i)
			}
		}
		if len(out) == before && len(seen) == 0 {
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

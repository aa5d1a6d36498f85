package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

func rootCommand(a *app) *cobra.Command {
	return group("root", "Replace the root key of the store", "  solekey root rotate", rootRotate(a))
}

func rootRotate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Give the store a new root key while agents are served",
		Long: `Give the store a new root key. Agents go on: every process that meets what it
cannot open reads the root key again. The older root key is removed when
nothing is sealed under it any more. It needs no key of an identity.

An older copy of the database opens with the older root key only, which is
nowhere after this, unless a backup carries it: copy the data directory anew. A
directory that was restored beside the store shares its root key: while a
profile or the default place leads to such a copy, nothing is rotated.
A rotation that was interrupted is finished by running it again.`,
		Example: "  solekey root rotate",
		Args:    usageArgs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.rotateRoot(cmd.Context()) },
	}
}

// errRootReadOnly reports a root key that this program cannot replace.
var errRootReadOnly = failf(exitUnavailable, "the root key comes from a systemd credential, which is only read; nothing was changed").
	hint("env -u CREDENTIALS_DIRECTORY solekey root rotate     (where the root key is in the keyring or a file), then make the credential anew")

func (a *app) rotateRoot(ctx context.Context) error {
	unlock, err := a.onlyOne("root.lock", "the root key is being rotated by another command")
	if err != nil {
		return err
	}
	defer unlock()
	ring, err := a.ring()
	if err != nil {
		return err
	}
	if err := a.noCopies(ctx); err != nil {
		return err
	}
	k, err := a.patient(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	var src keyring.Source
	out, err := k.RotateRoot(ctx, func(root vault.Root) error {
		_, at, err := ring.Get(keyring.Root, root.StoreID().String())
		if err != nil {
			return err
		}
		if at.Where == keyring.Credential {
			return errRootReadOnly
		}
		src, err = storeRoot(ring, root, at.Where)
		return err
	})
	if err != nil {
		return err
	}
	if err := a.clearRootText(); err != nil {
		return err
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Epoch    uint32 `json:"epoch"`
			Resealed int    `json:"resealed"`
			Root     string `json:"root"`
			Resumed  bool   `json:"resumed"`
		}{out.Epoch, out.Resealed, placeOf(src), out.Resumed})
	}
	verb := "rotated"
	if out.Resumed {
		verb = "finished"
	}
	a.row("root", verb, fmt.Sprintf("epoch %d  %s resealed (%s)", out.Epoch, count(out.Resealed, "identity"), whereWords(src)))
	if out.Resumed {
		a.say("an interrupted rotation was finished; run it again to rotate once more")
	}
	a.say("copies of the data directory from before do not open with this root key: make new ones")
	return nil
}

// noCopies refuses while another directory that this machine knows holds the
// same store, as after a restore beside it: they share one root key, and
// nothing would open the other any more.
func (a *app) noCopies(ctx context.Context) error {
	dir, err := a.storeDir()
	if err != nil {
		return err
	}
	id := storeAt(ctx, dir)
	if id.IsZero() {
		return nil // opening it says why
	}
	here, err := os.Stat(dir)
	if err != nil {
		return err
	}
	others := []string{a.conf.envHome, a.conf.dataBase}
	all, err := a.profiles()
	if err != nil {
		return err
	}
	for _, p := range all {
		others = append(others, p.Store)
	}
	for _, other := range others {
		if there, err := os.Stat(other); err == nil && !os.SameFile(here, there) && storeAt(ctx, other) == id {
			return failf(exitExists, "%s holds a copy of the same store, which nothing would open after this", tilde(other)).
				hint("rm -r "+shellPath(dir)+"     (to give up the one that you do not need)", "rm -r "+shellPath(other))
		}
	}
	return nil
}

// storeAt returns the ID of the store in dir, the zero ID if there is none or
// it cannot be read.
func storeAt(ctx context.Context, dir string) identity.ID {
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return identity.ID{}
	}
	defer b.Close()
	id, err := vault.StoreIn(ctx, b)
	if err != nil {
		return identity.ID{}
	}
	return id
}

// clearRootText removes what a run that was killed while it wrote root text
// left beside it: the older root secret may be in there.
func (a *app) clearRootText() error {
	dir, err := a.conf.configPath()
	if err != nil {
		return err
	}
	left, err := filesIn(dir, ".new-", "")
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an older root key: %w", err)
		}
	}
	return nil
}

// onlyOne takes a lock that a second command of the kind does not get. The
// caller calls unlock at the end.
func (a *app) onlyOne(name, taken string) (unlock func(), err error) {
	dir, err := a.makeConfigDir()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, privateMode)
	if err != nil {
		return nil, fmt.Errorf("taking a lock: %w", err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, failf(exitExists, "%s", taken)
	}
	return func() { _ = f.Close() }, nil
}

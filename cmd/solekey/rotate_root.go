package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
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
nowhere after this, unless a backup carries it: copy the data directory anew.
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
	dir, err := a.conf.configPath()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the config directory: %w", err)
	}
	path, err := a.conf.configPath(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, privateMode)
	if err != nil {
		return nil, fmt.Errorf("taking a lock: %w", err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, failf(exitExists, "%s", taken)
	}
	return func() { _ = f.Close() }, nil
}

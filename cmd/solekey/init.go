package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The order of init: marker, root text at its source, engine, store record,
// recovery key shown and confirmed, marker gone. While the marker stands, no
// other command takes the store, so whatever interrupts init, a rerun begins
// again with the same root text and nobody holds a stale recovery key.

type initFlags struct {
	strict       bool
	noRecovery   bool
	root         string
	recoveryFile string
}

func initCommand(a *app) *cobra.Command {
	var f initFlags
	c := &cobra.Command{
		Use:   "init",
		Short: "Make the store of this machine",
		Long: `Make the store: an empty data directory, and a root key that rests in the OS
keyring or in a file readable by you alone.

The recovery key is shown once, on the terminal only. It opens a vault whose
key is lost; keep it off this machine. --recovery-file writes it to a new
file instead, for scripts; --no-recovery makes none, and then a lost key is a
lost vault.`,
		Example: `  solekey init
  solekey init --strict
  solekey init --recovery-file /media/stick/solekey-recovery.txt`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runInit(cmd.Context(), f) },
	}
	c.Flags().BoolVar(&f.strict, "strict", false, "entries may be used but not read, unless put says otherwise")
	c.Flags().BoolVar(&f.noRecovery, "no-recovery", false, "make no recovery key: a lost key is then a lost vault")
	c.Flags().StringVar(&f.root, "root", "", "`PLACE` of the root key: keyring or file (default keyring if there is one)")
	c.Flags().StringVar(&f.recoveryFile, "recovery-file", "", "write the recovery key to this new `FILE` instead of the terminal")
	_ = c.RegisterFlagCompletionFunc("root", words("keyring", "file"))
	return c
}

// initResult is what init says with --json.
type initResult struct {
	Store        string `json:"store"`
	StoreID      string `json:"store_id"`
	Fingerprint  string `json:"fingerprint"`
	Root         string `json:"root"`
	Recovery     string `json:"recovery"` // terminal, file or none
	RecoveryFile string `json:"recovery_file,omitempty"`
	Exposure     string `json:"default_exposure"`
}

func (a *app) runInit(ctx context.Context, f initFlags) error {
	where, err := f.where()
	if err != nil {
		return err
	}
	dir, err := a.conf.dataDir()
	if err != nil {
		return err
	}
	if err := isPlace(dir); err != nil {
		return err
	}
	pending := filepath.Join(dir, pendingName)
	if err := a.beforeInit(dir, pending); err != nil {
		return err
	}
	show, err := a.recoveryOut(f)
	if err != nil {
		return err
	}
	defer show.close()
	ring, err := a.ring()
	if err != nil {
		return err
	}
	root, src, again := pendingRoot(ring, pending)
	if !again || where != keyring.Auto && where != src.Where {
		again = false
		if root, src, err = putRoot(ring, dir, pending, where); err != nil {
			return err
		}
	}
	b, err := makeEngine(ctx, dir)
	if err != nil && !again { // nothing was made, so nothing is to be continued
		return errors.Join(err, ring.Delete(keyring.Root, root.StoreID().String()), os.Remove(pending))
	}
	if err != nil {
		return err
	}
	birth, err := a.makeStore(ctx, b, root, f)
	if err != nil {
		return err
	}
	a.row("store", "created", tilde(dir)+" (root key "+whereWords(src)+")")
	if err := show.reveal(ctx, birth.Recovery); err != nil {
		return err
	}
	if err := os.Remove(pending); err != nil {
		return fmt.Errorf("finishing the store: %w", err)
	}
	return a.initDone(dir, birth, src, f)
}

func (f initFlags) where() (keyring.Where, error) {
	if f.noRecovery && f.recoveryFile != "" {
		return keyring.Auto, failf(exitUsage, "--no-recovery makes no key for --recovery-file")
	}
	switch f.root {
	case "":
		return keyring.Auto, nil
	case "keyring":
		return keyring.OS, nil
	case "file":
		return keyring.File, nil
	}
	return keyring.Auto, failf(exitUsage, "--root takes keyring or file")
}

// beforeInit refuses a directory that holds a finished store.
func (a *app) beforeInit(dir, pending string) error {
	if _, err := os.Lstat(filepath.Join(dir, restoringName)); err == nil {
		return errCutOff(dir)
	}
	if _, err := os.Lstat(pending); err == nil {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, "vault.db")); err == nil {
		next := "solekey identity list"
		if all, err := a.profiles(); err == nil && len(all) == 0 {
			next = "solekey identity create NAME"
		}
		return failf(exitExists, "there is a store in %s already", tilde(dir)).hint(next)
	}
	if remains(dir) {
		return errLost(dir)
	}
	return nil
}

// putRoot makes root text and puts it to its source. The marker precedes it.
func putRoot(ring *keyring.Ring, dir, pending string, where keyring.Where) (vault.Root, keyring.Source, error) {
	root := vault.NewRoot()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return vault.Root{}, keyring.Source{}, fmt.Errorf("making the data directory: %w", err)
	}
	if err := writeFile(pending, []byte(root.StoreID().String()+"\n")); err != nil {
		return vault.Root{}, keyring.Source{}, err
	}
	src, err := storeRoot(ring, root, where)
	if err != nil {
		return vault.Root{}, keyring.Source{}, err
	}
	return root, src, nil
}

// storeRoot puts root text to its source.
func storeRoot(ring *keyring.Ring, root vault.Root, where keyring.Where) (keyring.Source, error) {
	src, err := ring.Set(keyring.Root, root.StoreID().String(), root.Reveal(), where)
	if err != nil {
		return keyring.Source{}, fmt.Errorf("storing the root key: %w", err)
	}
	return src, nil
}

// pendingRoot finds the root text that an interrupted init put away.
func pendingRoot(ring *keyring.Ring, pending string) (vault.Root, keyring.Source, bool) {
	b, err := os.ReadFile(pending)
	if err != nil {
		return vault.Root{}, keyring.Source{}, false
	}
	id, err := identity.ParseID(strings.TrimSpace(string(b)))
	if err != nil {
		return vault.Root{}, keyring.Source{}, false
	}
	text, src, err := ring.Get(keyring.Root, id.String())
	if err != nil {
		return vault.Root{}, keyring.Source{}, false
	}
	root, err := vault.ParseRoot(text)
	return root, src, err == nil && root.StoreID() == id
}

// makeEngine makes the files of the store. What an interrupted init left
// holds no identity, as the marker kept every other command away; it is
// replaced, since its recovery key may never have been seen.
func makeEngine(ctx context.Context, dir string) (*bolt.Store, error) {
	b, err := bolt.Create(dir, bolt.Options{})
	if !errors.Is(err, fs.ErrExist) {
		return b, err
	}
	if err := clearUnfinished(ctx, dir); err != nil {
		return nil, err
	}
	return bolt.Create(dir, bolt.Options{})
}

// makeStore makes the store record and the first line of the log.
func (a *app) makeStore(ctx context.Context, b *bolt.Store, root vault.Root, f initFlags) (vault.Birth, error) {
	o := vault.InitOptions{NoRecovery: f.noRecovery, Now: a.now}
	if f.strict {
		o.Exposure = vault.ExposeUse
	}
	birth, err := vault.Init(ctx, b, root, o)
	return birth, errors.Join(err, b.Close())
}

func clearUnfinished(ctx context.Context, dir string) error {
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		return err
	}
	found, err := b.Identities(ctx, identity.ID{}, 1)
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	if len(found) > 0 {
		return failf(exitExists, "%s holds identities, although its set-up was interrupted; nothing was changed", tilde(dir)).hint("rm " + filepath.Join(dir, pendingName))
	}
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clearing an interrupted set-up: %w", err)
		}
	}
	return nil
}

func (a *app) initDone(dir string, birth vault.Birth, src keyring.Source, f initFlags) error {
	exposure := vault.ExposeReveal
	if f.strict {
		exposure = vault.ExposeUse
	}
	if a.conf.asJSON {
		out := initResult{
			Store: dir, StoreID: birth.StoreID.String(), Fingerprint: birth.Fingerprint.String(), Root: placeOf(src),
			Recovery: "terminal", RecoveryFile: f.recoveryFile, Exposure: exposure.String(),
		}
		switch {
		case f.noRecovery:
			out.Recovery = "none"
		case f.recoveryFile != "":
			out.Recovery = "file"
		}
		return a.writeJSON(out)
	}
	if f.recoveryFile != "" {
		a.row("recovery", "written", tilde(f.recoveryFile)+" (move it off this machine)")
	}
	if src.Where == keyring.File {
		a.say("the root key is in a file: a copy of this home directory opens what its keys open")
	}
	a.say("next: solekey identity create NAME")
	return nil
}

// recovery is where the recovery key is shown.
type recovery struct {
	none     bool
	file     *os.File
	terminal *terminal
	noAsk    bool
}

// recoveryOut opens that place before anything is made, so that a store never
// stands with a recovery key that had nowhere to go.
func (a *app) recoveryOut(f initFlags) (*recovery, error) {
	if f.noRecovery {
		return &recovery{none: true}, nil
	}
	if f.recoveryFile != "" {
		file, err := os.OpenFile(f.recoveryFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, privateMode)
		if errors.Is(err, fs.ErrExist) {
			return nil, failf(exitExists, "--recovery-file: %s exists already", f.recoveryFile)
		}
		if err != nil {
			return nil, failf(exitUsage, "--recovery-file: %v", err)
		}
		return &recovery{file: file}, nil
	}
	t, err := openTerminal()
	if err != nil {
		return nil, failf(exitUsage, "no terminal: the recovery key is shown once, and on a terminal only").
			hint("solekey init --recovery-file FILE", "solekey init --no-recovery")
	}
	return &recovery{terminal: t, noAsk: a.conf.yes}, nil
}

// reveal shows the key. On a terminal its last characters are typed back, as
// proof that it was kept.
func (r *recovery) reveal(ctx context.Context, key identity.Key) error {
	switch {
	case r.none:
		return nil
	case r.file != nil:
		_, err := r.file.WriteString(key.Reveal() + "\n")
		err = errors.Join(err, r.file.Sync(), r.file.Close())
		if err != nil {
			_ = os.Remove(r.file.Name())
			return fmt.Errorf("writing the recovery key: %w", err)
		}
		r.file = nil
		return nil
	}
	text := key.Reveal()
	r.terminal.printf("recovery key, shown once; keep it off this machine:\n  %s\n", text)
	if r.noAsk {
		return nil
	}
	for range 3 {
		answer, err := r.terminal.ask(ctx, "Type its last 6 characters to confirm: ")
		if err != nil {
			return err
		}
		if answer == text[len(text)-6:] || answer == text {
			return nil
		}
		r.terminal.printf("these are not its last 6 characters\n")
	}
	return &failure{exit: exitExists, word: "not_confirmed", message: "the recovery key was not confirmed, so the set-up is not finished", try: []string{"solekey init"}}
}

// close releases what reveal did not use up. A recovery file without a key in
// it is removed.
func (r *recovery) close() {
	if r.terminal != nil {
		r.terminal.Close()
	}
	if r.file != nil {
		_ = r.file.Close()
		_ = os.Remove(r.file.Name())
	}
}

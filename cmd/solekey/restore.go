package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// restoringName is a file in the data directory that exists from the first
// step of a restore to its last. It names the store and the backup.
const restoringName = "restore.pending"

type restoreFlags struct {
	into     string
	ledger   string
	verify   bool
	recovery recoveryFlags
	cells    string
	root     string
}

func restoreCommand(a *app) *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a store again from a backup",
		Long: `Restore makes a new store in an empty directory from a backup file. The
recovery key opens the backup and proves that it is yours: it is asked for
hidden, or read from --recovery-key-file or --recovery-key-fd.

--ledger is the audit.jsonl of the lost machine, the newest copy you have; where
the log is in several files, a directory with all that are left.
Whatever it says was revoked, shredded or replaced after the backup is dead in
the restored store before its first call. Without it restore lists every
identity that lives again, and asks.

An interrupted restore leaves a directory that no command takes for a store;
running restore again starts over. A store that exists is never touched.

With --verify nothing is written: the file is read to its end and proven. It
exits with 8 if the file is truncated, changed, out of order, mixed or forged.`,
		Example: `  solekey restore /mnt/nas/solekey-2026-11-23.skb --verify
  solekey restore /mnt/nas/solekey-2026-11-23.skb --into ~/restored --ledger audit.jsonl`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.restore(cmd.Context(), args[0], f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.into, "into", "", "data `DIR` to make (default that of this machine)")
	fl.StringVar(&f.ledger, "ledger", "", "newest audit log `FILE` of the lost store, or a directory with all its files")
	fl.BoolVar(&f.verify, "verify", false, "check the file and write nothing")
	f.recovery.declare(fl)
	fl.StringVar(&f.cells, "cells", "", "open with the root key and the vault.cells in this data `DIR`, without the recovery key")
	fl.StringVar(&f.root, "root", "", "`PLACE` of the root key: keyring or file (default keyring if there is one)")
	_ = c.RegisterFlagCompletionFunc("root", words("keyring", "file"))
	return c
}

func (a *app) restore(ctx context.Context, path string, f restoreFlags) error {
	where, err := initFlags{root: f.root}.where()
	if err != nil {
		return err
	}
	if f.recovery.given() && f.cells != "" {
		return failf(exitUsage, "the recovery key and --cells both open the backup; give one")
	}
	file, err := openInput(path)
	if err != nil {
		return err
	}
	defer file.Close()
	ar, err := vault.OpenArchive(ctx, file)
	if fault, ok := errors.AsType[vault.Fault](err); ok {
		return a.faulty(path, fault, f.verify)
	}
	if err != nil {
		return err
	}
	if f.verify {
		return a.verifyBackup(ctx, path, ar, f)
	}
	return a.restoreFrom(ctx, ar, f, where)
}

// openInput opens a file that a person named. It looks first: opening a pipe
// waits for its other end.
func openInput(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, failf(exitUsage, "%s is not a regular file", tilde(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, failf(exitUsage, "%v", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, failf(exitUsage, "%s is not a regular file", tilde(path))
	}
	return f, nil
}

// faulty says what is wrong with a backup file: an input that cannot be used
// or, with --verify, what the check found.
func (a *app) faulty(path string, fault vault.Fault, verify bool) error {
	fail := failf(exitUsage, "%s is refused: %s; nothing was written", tilde(path), fault.Error())
	fail.word = string(fault)
	if !verify {
		return fail.hint("an older backup; solekey restore FILE --verify checks one")
	}
	if a.conf.asJSON {
		out := struct {
			OK    bool   `json:"ok"`
			Fault string `json:"fault"`
		}{Fault: string(fault)}
		if err := a.writeJSON(out); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.stdout, "fail      %s: %s\n", tilde(path), fault.Error())
	}
	return reported{exit: exitFindings}
}

// rootHere returns the root of a store if it is on this machine.
func (a *app) rootHere(store identity.ID) (vault.Root, error) {
	ring, err := a.ring()
	if err != nil {
		return vault.Root{}, err
	}
	text, _, err := ring.Get(keyring.Root, store.String())
	if errors.Is(err, keyring.ErrNone) {
		return vault.Root{}, nil
	}
	if err != nil {
		return vault.Root{}, failf(exitUnavailable, "reading the root key: %v", err)
	}
	root, err := vault.ParseRoot(text)
	if err != nil {
		return vault.Root{}, err
	}
	if root.StoreID() != store { // a credential of another store
		return vault.Root{}, nil
	}
	return root, nil
}

// openArchive opens a backup with what the flags name, else with the recovery
// key that a person types. done releases what it needed.
func (a *app) openArchive(ctx context.Context, ar *vault.Archive, f restoreFlags) (done func(), err error) {
	done = func() {}
	if f.cells != "" {
		return a.openBeside(ar, f.cells)
	}
	if !ar.Info().Sealed {
		return done, failf(exitUsage, "this backup is of a store without a recovery key: it opens only beside the root key and the cell file of its machine").
			hint("solekey restore FILE --into DIR --cells OLD-DATA-DIR")
	}
	key, err := a.recoveryKey(ctx, f.recovery)
	if err != nil {
		return done, err
	}
	return done, ar.OpenWithRecoveryKey(key)
}

// openBeside opens a backup with the root key and the cell file of the
// machine that it was made on. The database there may be damaged.
func (a *app) openBeside(ar *vault.Archive, dir string) (done func(), err error) {
	root, err := a.rootHere(ar.Info().Store)
	if err != nil {
		return nil, err
	}
	if root.IsZero() {
		return nil, errNoRoot
	}
	b, err := bolt.Open(dir, bolt.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failf(exitUsage, "--cells: no store in %s; its vault.db may be damaged, but it must be there", tilde(dir))
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = b.Close() }, ar.OpenWithRoot(root, b)
}

func (a *app) plan(ctx context.Context, ar *vault.Archive, f restoreFlags) (*vault.Plan, error) {
	if f.ledger == "" {
		return ar.Plan(ctx, nil, a.now())
	}
	l, err := openLedger(f.ledger)
	if err != nil {
		return nil, err
	}
	p, err := ar.Plan(ctx, l, a.now()) // the plan reads it again; it ends with the process
	if err != nil {
		l.close()
	}
	return p, err
}

func (a *app) restoreFrom(ctx context.Context, ar *vault.Archive, f restoreFlags, where keyring.Where) error {
	dir, err := a.restoreDir(f)
	if err != nil {
		return err
	}
	unlock, err := a.onlyOne("restore.lock", "another restore is under way")
	if err != nil {
		return err
	}
	defer unlock()
	finished, err := a.beforeRestore(ctx, dir, ar)
	if err != nil || finished {
		return err
	}
	done, err := a.openArchive(ctx, ar, f)
	if err != nil {
		return foreignHint(err)
	}
	defer done()
	p, err := a.plan(ctx, ar, f)
	if err != nil {
		return err
	}
	if err := a.confirmUnknown(ctx, ar, p); err != nil {
		return err
	}
	bar := a.progress("restore", "identities")
	defer bar.end()
	m, err := a.restoration(dir, ar, p, where)
	if err != nil {
		return err
	}
	m.progress = bar.show
	if err := m.run(ctx); err != nil {
		return notFinished(err, dir)
	}
	bar.end()
	if err := a.restored(dir, ar, p); err != nil {
		return err
	}
	if m.shared {
		a.say("the root key was here already: if another copy of this store is in use, it shares it; give one of the two up")
	}
	return nil
}

func foreignHint(err error) error {
	if errors.Is(err, vault.FaultForeign) {
		return failf(exitRefused, "this key or root is of another store than the backup").hint("the recovery key that was shown when that store was made")
	}
	return err
}

// notFinished says that the directory is not a store yet.
func notFinished(err error, dir string) error {
	f := *explain(err)
	f.message += "; the restore into " + tilde(dir) + " is not finished"
	f.try = append([]string{"the same command again: it starts over"}, f.try...)
	return &f
}

func (a *app) restoreDir(f restoreFlags) (string, error) {
	if f.into == "" {
		return a.conf.dataDir()
	}
	if a.conf.home != "" {
		return "", failf(exitUsage, "--into and --home both name the data directory; give one")
	}
	if _, err := os.Stat(f.into); errors.Is(err, syscall.ENOTDIR) {
		return "", failf(exitUsage, "--into %s: a part of the path is a file", f.into).hint("solekey restore FILE --into DIR")
	}
	return filepath.Abs(f.into)
}

// confirmUnknown lists what lives again although it may have been revoked
// since the backup, and asks.
func (a *app) confirmUnknown(ctx context.Context, ar *vault.Archive, p *vault.Plan) error {
	if p.Newer >= 0 {
		return nil
	}
	var names []string
	for _, i := range p.Identities {
		if i.Live > 0 {
			names = append(names, nameOf(i))
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	a.warn("without --ledger nobody knows what was revoked after %s; keys live again of: %s", stamp(ar.Info().Created), strings.Join(names, ", "))
	return a.confirm(ctx, "Restore them all?")
}

func nameOf(i vault.Planned) string {
	if i.Name == "" {
		return i.ID.String()[:8]
	}
	return i.Name
}

// restoration prepares making the store of a plan in dir, and putting its root
// where this machine looks for it. What is there of a younger epoch stays, as
// a store that it opens may be here too.
func (a *app) restoration(dir string, ar *vault.Archive, p *vault.Plan, where keyring.Where) (m restoration, err error) {
	m = restoration{dir: dir, ar: ar, plan: p, now: a.now, create: createEngine}
	if a.engine != nil {
		m.create = a.engine
	}
	ring, err := a.ring()
	if err != nil {
		return m, err
	}
	have, err := a.rootHere(ar.Info().Store)
	if err != nil {
		return m, err
	}
	root, err := ar.Root(have)
	if err != nil {
		return m, err
	}
	m.shared = !have.IsZero()
	m.putRoot = func() error {
		if !have.IsZero() && root.Reveal() == have.Reveal() {
			return nil
		}
		_, err := ring.Set(keyring.Root, root.StoreID().String(), root.Reveal(), where)
		if err != nil {
			return fmt.Errorf("storing the root key: %w", err)
		}
		return nil
	}
	return m, nil
}

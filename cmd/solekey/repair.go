package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// A repair makes a whole store out of a damaged one and a backup of it, and
// touches neither: it builds a directory beside the store, and gives it the
// name of the store if nothing was written there meanwhile. What opens is as
// it is, what does not is as of the backup, and whatever the log closed is
// closed.

type repairFlags struct {
	backup   string
	into     string
	recovery recoveryFlags
}

func (f repairFlags) check(fix bool) error {
	switch {
	case f.backup != "" && fix:
		return failf(exitUsage, "--clear and --repair are two steps; give one").hint("solekey doctor --clear     (after a disk check), then solekey doctor --repair BACKUP")
	case f.backup == "" && (f.into != "" || f.recovery.given()):
		return failf(exitUsage, "--into and the recovery key belong to a repair").hint("solekey doctor --repair BACKUP")
	case f.backup != "" && f.into == "" && runtime.GOOS == "windows":
		return failf(exitUsage, "this system does not let a directory be renamed while its lock is held, so a repair makes another one").hint("solekey doctor --repair BACKUP --into DIR")
	}
	return nil
}

// repairTries is how often a repair begins anew when the store was used
// meanwhile.
const repairTries = 3

// repair is one repair on its way.
type repair struct {
	app    *app
	f      repairFlags
	site   site
	ar     *vault.Archive
	root   vault.Root
	noRoot bool // the root key was not on this machine
	b      *bolt.Store
	since  bolt.Stamp
	shown  []string // what was confirmed
}

func (a *app) repair(ctx context.Context, f repairFlags) error {
	r := &repair{app: a, f: f}
	if err := r.begin(); err != nil {
		return err
	}
	file, err := openInput(f.backup)
	if err != nil {
		return err
	}
	defer file.Close()
	r.ar, err = vault.OpenArchive(ctx, file)
	if fault, ok := errors.AsType[vault.Fault](err); ok {
		return a.faulty(f.backup, fault, false)
	}
	if err != nil {
		return err
	}
	if err := r.openStore(ctx); err != nil {
		return err
	}
	defer func() { _ = r.b.Close() }()
	for try := 1; ; try++ {
		err := r.once(ctx)
		switch {
		case errors.Is(err, vault.ErrOtherPast):
			f := *explain(err)
			return f.hint("a backup that was made of this very store", "solekey restore BACKUP --into DIR     (the store of the backup, beside this one)")
		case !errors.Is(err, storage.ErrConflict):
			return foreignHint(err)
		}
		if try == repairTries {
			return failf(exitExists, "the store was used while it was repaired, so the repaired one was not put in its place; nothing was changed").
				hint("stop every solekey serve and mcp of this store, then the same command")
		}
	}
}

// begin finds the directories, and finishes a repair that was cut off.
func (r *repair) begin() error {
	a := r.app
	dir, err := a.storeDir()
	if err != nil {
		return err
	}
	if r.site, err = newSite(dir, r.f.into, a.now()); err != nil {
		return err
	}
	r.site.step = a.step
	finished, err := r.site.resume()
	if err != nil {
		return err
	}
	if finished {
		a.row("repaired", "finished", tilde(r.site.dir)+": a repair that was cut off had made it whole already")
	}
	if err := isPlace(r.site.dir); err != nil {
		return err
	}
	if cutOff(r.site.dir) {
		return errCutOff(r.site.dir)
	}
	return nil
}

// openStore opens the store as far as it does, and the backup with root and
// cells of this machine, or with the recovery key if that is given or needed.
func (r *repair) openStore(ctx context.Context) (err error) {
	a := r.app
	r.b, err = bolt.Open(r.site.dir, bolt.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return failf(exitUnavailable, "no vault.db in %s: a repair takes what opens from it, and there is nothing", tilde(r.site.dir)).hint(restoreBeside(r.site.dir)...)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = r.b.Close()
		}
	}()
	if _, err = r.b.Stamp(ctx); err != nil {
		if reason, _ := r.b.Failed(ctx); reason != "" {
			return failf(exitUnavailable, "%s", reason).hint("solekey doctor --clear     (after a disk check and a reboot)")
		}
		return err
	}
	have, err := a.rootHere(r.ar.Info().Store)
	if err != nil {
		return err
	}
	r.noRoot = have.IsZero()
	if err := r.openBackup(ctx, have); err != nil {
		return foreignHint(err)
	}
	r.root, err = r.ar.Root(have)
	return err
}

func (r *repair) openBackup(ctx context.Context, have vault.Root) error {
	sealed := r.ar.Info().Sealed
	if !r.f.recovery.given() && !have.IsZero() {
		err := r.ar.OpenWithRoot(have, r.b)
		if _, fault := errors.AsType[vault.Fault](err); err == nil || fault || !sealed {
			return err
		}
		return failf(exitUsage, "the root key of this machine does not open the backup: it was rotated since").
			hint("the same command with --recovery-key-file FILE")
	}
	if !sealed {
		return failf(exitUsage, "this backup is of a store without a recovery key, or of another store than this one: it opens only beside the root key of its machine").
			hint("solekey restore " + shellPath(r.f.backup) + " --verify")
	}
	key, err := r.app.recoveryKey(ctx, r.f.recovery)
	if err != nil {
		return err
	}
	return r.ar.OpenWithRecoveryKey(key)
}

// restoreBeside are the commands that make a store again without its
// database.
func restoreBeside(dir string) []string {
	if _, err := os.Lstat(dir); err != nil {
		return []string{"solekey restore BACKUP --into " + shellPath(dir)}
	}
	ledger := ""
	if info, err := os.Lstat(filepath.Join(dir, "audit.jsonl")); err == nil && info.Size() > 0 {
		ledger = " --ledger " + shellPath(filepath.Join(dir, "audit.jsonl"))
	}
	return []string{
		"solekey restore BACKUP --into " + shellPath(dir+repairedSuffix) + ledger,
		"then, with every solekey of this store stopped: " + exchange(dir, dir+".old", dir+repairedSuffix),
	}
}

// exchange is the command that puts a store aside and another in its place.
func exchange(dir, aside, other string) string {
	return fmt.Sprintf("mv %s %s && mv %s %s", shellPath(dir), shellPath(aside), shellPath(other), shellPath(dir))
}

// once makes one attempt, from a state of the store to the swap in that
// state.
func (r *repair) once(ctx context.Context) (err error) {
	a := r.app
	if r.since, err = r.b.Stamp(ctx); err != nil {
		return err
	}
	file, err := r.site.prepare(r.ar)
	if err != nil {
		return err
	}
	done := false
	defer func() {
		_ = file.Close()
		if !done {
			err = errors.Join(err, r.site.discard())
		}
	}()
	m, err := r.ar.Mend(ctx, r.b, r.root, file, a.now())
	if err != nil {
		return err
	}
	faults := r.b.Check(ctx)
	if m.Sound() && faults == nil {
		return r.nothing(ctx, m)
	}
	if err := r.confirm(ctx, m, faults); err != nil {
		return err
	}
	if err := r.build(ctx, m); err != nil {
		return err
	}
	if done, err = r.site.finish(ctx, r.b, r.since, file); err != nil {
		return err
	}
	return r.report(m)
}

// nothing ends a repair of a store that is whole. Its root key may have been
// what was missing.
func (r *repair) nothing(ctx context.Context, m *vault.Mended) error {
	a := r.app
	if !r.noRoot {
		a.row("ok", "", "every vault opens, and the log goes on to its end: nothing is to be repaired")
		return r.unchanged(m)
	}
	if err := a.confirm(ctx, "Every vault opens. Put the root key of the backup back?"); err != nil {
		return err
	}
	p, err := a.restoration(r.site.dir, m.Archive, m.Plan, keyring.Auto)
	if err != nil {
		return err
	}
	if err := p.putRoot(); err != nil {
		return err
	}
	a.row("root", "", "the root key was put back from the backup; every vault opens")
	return r.unchanged(m)
}

// build makes the repaired store in the directory of the site.
func (r *repair) build(ctx context.Context, m *vault.Mended) error {
	a := r.app
	bar := a.progress("repair", "identities")
	defer bar.end()
	p, err := a.restoration(r.site.work, m.Archive, m.Plan, keyring.Auto)
	if err != nil {
		return err
	}
	p.progress = bar.show
	if err := p.run(ctx); err != nil {
		return err
	}
	return r.site.carryOver()
}

// confirm shows what the repair does, and asks once. A later attempt asks
// again if it would do something else.
func (r *repair) confirm(ctx context.Context, m *vault.Mended, faults error) error {
	a := r.app
	rows, warnings := r.tell(m)
	if !m.Better() && (faults == nil || r.lacksKey(m)) {
		a.showRows(rows, warnings)
		a.say("what is at hand brings nothing back; nothing was changed")
		if err := r.unchanged(m); err != nil {
			return err
		}
		return reported{exit: exitFindings}
	}
	all := append(flatRows(rows), warnings...)
	if r.shown != nil && slices.Equal(r.shown, all) {
		return nil
	}
	r.shown = all
	a.showRows(rows, warnings)
	if r.f.into != "" {
		return a.confirm(ctx, "Build the repaired store in "+tilde(r.site.work)+"?")
	}
	return a.confirm(ctx, "Build the repaired store and put it in the place of "+tilde(r.site.dir)+"?")
}

// lacksKey reports that a shred key is lost, and the recovery key, which takes
// it from the backup, was not given.
func (r *repair) lacksKey(m *vault.Mended) bool {
	return r.ar.Info().Sealed && !r.f.recovery.given() && slices.ContainsFunc(m.Plan.Identities, func(i vault.Planned) bool {
		return i.Damaged && m.Parts[i.ID].CellLost
	})
}

func (a *app) showRows(rows [][2]string, warnings []string) {
	for _, row := range rows {
		a.row(row[0], "", row[1])
	}
	for _, w := range warnings {
		a.warn("%s", w)
	}
}

func flatRows(rows [][2]string) (out []string) {
	for _, row := range rows {
		out = append(out, row[0]+" "+row[1])
	}
	return out
}

// tell says identity by identity what the repair does.
func (r *repair) tell(m *vault.Mended) (rows [][2]string, warnings []string) {
	add := func(word, format string, args ...any) {
		rows = append(rows, [2]string{word, fmt.Sprintf(format, args...)})
	}
	made := stamp(r.ar.Info().Created)
	kept := 0
	var alive []string
	for _, i := range m.Plan.Identities {
		p := m.Parts[i.ID]
		switch {
		case i.Damaged:
			add("damaged", "%s: %s", nameOf(i), p.Why)
		case p.Origin == vault.FromBackup && i.Since == vault.SinceShredded: // nothing of the backup comes back
		case p.Origin == vault.FromBackup:
			add("backup", "%s: %s; as of the backup of %s%s", nameOf(i), p.Why, made, later(p))
			if i.Live > 0 {
				alive = append(alive, nameOf(i))
			} else if i.Status == identity.Active {
				warnings = append(warnings, fmt.Sprintf("no key of %s opens it afterwards: solekey identity recover %s", nameOf(i), nameOf(i)))
			}
		case p.Origin == vault.FromStoreCell:
			add("cell", "%s: its shred key comes from the backup, everything else is as it is", nameOf(i))
		case p.Later > 0:
			add("older", "%s: %s, and the backup has nothing newer%s", nameOf(i), p.Why, later(p))
		case i.Since == vault.SinceNothing:
			kept++
		}
		if text := sinceText(i); text != "" && !i.Damaged {
			add("closed", "%s", text)
		}
	}
	for _, id := range m.Plan.Lost {
		add("lost", "%s: it cannot be read, and the backup does not have it", id.String()[:8])
	}
	add("kept", "%s unchanged", count(kept, "identity"))
	if m.Healed {
		add("log", "lines that are damaged or missing come from the backup")
	}
	if m.Headless {
		add("log", "begins anew, as the first files of it were moved away before the backup; the lines so far stay in %s", tilde(r.damaged()))
	}
	if m.Left > 0 {
		add("log", "%s left out, as they continue nothing; what they close is closed, and they stay in %s", count(m.Left, "line"), tilde(r.damaged()))
	}
	if m.Unlogged > 0 {
		add("log", "no line leads to %s as it is; the line of the repair stands for those that are missing", count(m.Unlogged, "identity"))
	}
	if m.Blind {
		add("log", "lines after %s are missing", made)
	}
	if m.Blind && len(alive) > 0 {
		warnings = append(warnings, fmt.Sprintf("lines of the log are missing, so nobody knows what was revoked after %s; keys live again of: %s", made, strings.Join(alive, ", ")))
	}
	if r.lacksKey(m) {
		warnings = append(warnings, "a lost shred key may be in the backup: --recovery-key-file FILE takes it from there")
	}
	return rows, warnings
}

// damaged is where the damaged store is after the repair.
func (r *repair) damaged() string {
	if r.f.into != "" {
		return r.site.dir
	}
	return r.site.aside
}

func later(p vault.Part) string {
	if p.Later == 0 {
		return ""
	}
	return fmt.Sprintf(", at most %s lost", count(p.Later, "later change"))
}

func sinceText(i vault.Planned) string {
	switch i.Since {
	case vault.SinceKeys:
		return fmt.Sprintf("%s: key %s, as the log says", nameOf(i), strings.Join(closedKeys(i), ", "))
	case vault.SinceRevoked, vault.SinceShredded:
		return fmt.Sprintf("%s: %s, as the log says", nameOf(i), i.Since)
	}
	return ""
}

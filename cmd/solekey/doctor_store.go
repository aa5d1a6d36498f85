package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
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

// The store under examination, from the outside in: where it is, who may read
// it, whether its files are sound, whether its vaults open.

// store examines the data directory and what is in it. Its error is for a
// command line that names no directory; everything else is a finding.
func (x *examination) store(ctx context.Context, fix bool) error {
	dir, err := x.app.storeDir()
	if err != nil {
		return err
	}
	x.dir = dir
	x.beside()
	if !x.present() {
		return nil
	}
	x.modes()
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		x.add(statusFail, "store", x.placeHint(err), "%s: %s", tilde(dir), trouble(err))
		return nil
	}
	if fix {
		x.clear(b)
	}
	ring, err := x.app.ring()
	if err != nil {
		_ = b.Close()
		return err
	}
	x.engine(ctx, b, ring)
	return nil
}

// beside looks for what repairs left beside the store: what lies there still
// opens.
func (x *examination) beside() {
	damaged, built := leftovers(x.dir)
	for _, d := range damaged {
		x.add(statusWarn, "store", "rm -r "+shellPath(d)+"     (once the repaired store is good)", "%s is the store before a repair, with its shred keys: what is shredded since still opens there", tilde(d))
	}
	if built != "" {
		x.add(statusWarn, "store", vault.TryRepair+"     (it clears it)", "%s was left by a repair that was cut off, with shred keys in it", tilde(built))
	}
}

// present reports whether there is a whole store to look at.
func (x *examination) present() bool {
	again := initHint(x.app, x.dir)
	if halfSwapped(x.dir) {
		x.add(statusFail, "store", "solekey doctor --repair BACKUP     (it goes on)", "%s: its repair was cut off between its last two steps; nothing is lost", tilde(x.dir))
		return false
	}
	if _, err := os.Lstat(filepath.Join(x.dir, pendingName)); err == nil {
		x.add(statusFail, "store", again, "%s: the set-up was interrupted", tilde(x.dir))
		return false
	}
	if cutOff(x.dir) {
		x.add(statusFail, "store", "solekey restore FILE --into "+x.dir, "%s: a restore into it was interrupted", tilde(x.dir))
		return false
	}
	info, err := os.Stat(x.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.add(statusFail, "store", again, "%s does not exist", tilde(x.dir))
		return false
	case err != nil:
		x.add(statusFail, "store", "", "%s: %s", tilde(x.dir), systemWords(err))
		return false
	case !info.IsDir():
		x.add(statusFail, "store", "solekey --home DIR doctor", "%s is not a directory", tilde(x.dir))
		return false
	}
	if _, err := os.Lstat(filepath.Join(x.dir, "vault.db")); errors.Is(err, fs.ErrNotExist) {
		if remains(x.dir) {
			lost := errLost(x.dir)
			x.add(statusFail, "store", lost.try[0]+"     (it makes another directory; then rename it)", "%s", lost.message)
		} else {
			x.add(statusFail, "store", again, "no store in %s", tilde(x.dir))
		}
		return false
	}
	return true
}

// modes looks at permissions before the engine does, which closes the
// directory and its files to others when it opens them.
func (x *examination) modes() {
	if runtime.GOOS == "windows" {
		return
	}
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		x.add(statusFail, "store", "chmod 700 "+x.dir, "%s cannot be read: %s", tilde(x.dir), systemWords(err))
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.IsDir() {
			continue
		}
		path := filepath.Join(x.dir, e.Name())
		switch perm := info.Mode().Perm(); {
		case info.Mode()&fs.ModeSymlink != 0:
			x.add(statusFail, "store", "", "%s is a symbolic link, which the store does not follow", tilde(path))
		case perm&0o077 != 0:
			x.add(statusWarn, "store", "chmod 600 "+path, "%s was open to others (mode %04o)", tilde(path), perm)
		case perm&0o600 != 0o600:
			x.add(statusFail, "store", "chmod 600 "+path, "%s is closed to its owner (mode %04o)", tilde(path), perm)
		}
	}
}

func (x *examination) placeHint(err error) string {
	if errors.Is(err, storage.ErrUnsupported) {
		return "solekey --home DIR init     (on a local disk)"
	}
	return ""
}

func (x *examination) clear(b *bolt.Store) {
	if err := b.ClearFailed(); err != nil {
		x.add(statusFail, "disk", "", "the mark could not be taken back: %s", trouble(err))
		return
	}
	x.add(statusOK, "disk", "", "no failure mark stands")
}

// engine examines an open store, from its files up to its log, and closes it.
func (x *examination) engine(ctx context.Context, b *bolt.Store, ring *keyring.Ring) {
	var from keyring.Source
	k := vault.Open(b, sourceOf(ring, &from), vault.Options{Now: x.app.now})
	defer k.Close()
	d := b.Describe()
	for _, w := range d.Warnings {
		x.add(statusWarn, "store", "", "%s", w)
	}
	x.structure(ctx, b)
	x.health(ctx, k)
	x.identities(ctx, k)
	x.summarize(d, from)
}

// structure takes over what the engine's own examination finds wrong. A
// compare-and-set that cannot match tells whether the database takes writes,
// without one.
func (x *examination) structure(ctx context.Context, b *bolt.Store) {
	for _, err := range parts(b.Check(ctx)) {
		x.addTrouble("store", err)
	}
	if x.failed() {
		return
	}
	_, err := b.Commit(ctx, identity.ID{}, math.MaxInt64, storage.Batch{})
	if err == nil || errors.Is(err, storage.ErrConflict) {
		return
	}
	x.addTrouble("store", fmt.Errorf("nothing can be written: %w", err))
	if last := &x.found[len(x.found)-1]; errors.Is(err, storage.ErrDamaged) {
		last.Try = "solekey doctor --clear     (what can be read is sound)"
		if strings.Contains(err.Error(), "read-only") {
			last.Try = "chmod 600 " + filepath.Join(x.dir, "vault.db")
		}
	}
}

// addTrouble adds an error of the engine, unless it was met before under
// another name: one cause shows in every file.
func (x *examination) addTrouble(subject string, err error) {
	said := trouble(err)
	cause := said
	if rest, ok := strings.CutPrefix(said, "checking "); ok {
		_, cause, _ = strings.Cut(rest, ": ")
	}
	for _, f := range x.found {
		if f.Status == statusFail && (strings.HasSuffix(f.Detail, cause) || f.cause != "" && strings.HasSuffix(said, f.cause)) {
			return
		}
	}
	x.add(statusFail, subject, repairHint(err), "%s", said)
	x.found[len(x.found)-1].cause = cause
}

// sourceOf finds root text as every command does, and notes where it rests.
func sourceOf(ring *keyring.Ring, from *keyring.Source) vault.RootSource {
	return func(ctx context.Context, store identity.ID) (vault.Root, error) {
		root, err := rootFrom(ring)(ctx, store)
		if err == nil {
			_, *from, _ = ring.Get(keyring.Root, store.String())
		}
		return root, err
	}
}

// health takes over what the vault's own examination finds wrong.
func (x *examination) health(ctx context.Context, k *vault.Keeper) {
	checks, err := k.Health(ctx)
	noLog := slices.ContainsFunc(x.found, func(f finding) bool { return strings.HasPrefix(f.Detail, "checking audit.jsonl") })
	for _, c := range checks {
		if c.OK || c.Subject == "vaults" || c.Subject == "audit" && noLog {
			continue // a count, or told already with its cause
		}
		subject, detail := c.Subject, c.Detail
		if id, ok := strings.CutPrefix(subject, "identity "); ok {
			subject, detail = "vault", id+" "+detail
		}
		x.add(statusFail, subject, c.Try, "%s", detail)
	}
	if err != nil {
		x.unreachable(err)
	}
}

// unreachable says why the vaults could not be examined, unless the files
// have told already.
func (x *examination) unreachable(err error) {
	if errors.Is(err, vault.ErrNoStore) {
		x.add(statusFail, "store", initHint(x.app, x.dir), "the database holds no store: its set-up was interrupted")
		return
	}
	if errors.Is(err, keyring.ErrNone) || errors.Is(err, errNoRoot) {
		x.add(statusFail, "root", vault.TryRepair+" --recovery-key-file FILE     (or put the root key back from a copy: into the OS keyring, or as a file in "+tilde(x.app.conf.configDir)+")", "%s", errNoRoot.message)
		return
	}
	if f, ok := errors.AsType[*failure](err); ok {
		x.add(statusFail, "root", "", "%s", f.message)
		return
	}
	x.addTrouble("vaults", err)
}

// identities lists who is in the store, for the checks of profiles and keys.
func (x *examination) identities(ctx context.Context, k *vault.Keeper) {
	all, err := k.Identities(ctx)
	if err != nil {
		return // health has said why
	}
	x.ids = make(map[string]vault.Info, len(all))
	for _, i := range all {
		x.ids[i.ID.String()] = i
	}
}

// summarize says what the store is and where its secrets rest.
func (x *examination) summarize(d bolt.Description, from keyring.Source) {
	if !x.failed() {
		x.add(statusOK, "store", "", "%s; audit verifies", x.words(d))
	}
	if x.ids != nil { // the root key opened them
		x.add(statusOK, "root", "", "root key %s", whereWords(from))
	}
	if d.Erasure == storage.InPlace {
		x.add(statusOK, "shred", "", "overwrites keys in place on %s; remapping inside an SSD and snapshots below cannot be seen", d.FileSystem)
	} else {
		x.add(statusWarn, "shred", "", "best effort: %s may keep older copies of an overwritten key", d.FileSystem)
	}
}

// words are mode, file system, identities and size of a sound store.
func (x *examination) words(d bolt.Description) string {
	active := 0
	for _, i := range x.ids {
		if i.Status == identity.Active {
			active++
		}
	}
	var size int64
	for _, n := range d.Sizes {
		size += n
	}
	mode := ""
	if runtime.GOOS != "windows" {
		mode = "0700, "
	}
	return fmt.Sprintf("%s%s, %s, %.1f MiB", mode, d.FileSystem, identities(active), float64(size)/(1<<20))
}

func identities(n int) string {
	if n == 1 {
		return "1 identity"
	}
	return fmt.Sprintf("%d identities", n)
}

// trouble is what an error of the engine says. Its texts hold no byte of a
// key or value.
func trouble(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.message
	}
	if errors.Is(err, fs.ErrPermission) {
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			return tilde(p.Path) + ": " + p.Err.Error()
		}
	}
	for _, s := range []error{
		storage.ErrUnavailable, storage.ErrUnknown, storage.ErrFull, storage.ErrDamaged, storage.ErrNoCell,
		storage.ErrErased, storage.ErrUnsupported, storage.ErrClosed, fs.ErrNotExist, context.DeadlineExceeded,
	} {
		if errors.Is(err, s) {
			return strings.TrimSuffix(err.Error(), ": "+s.Error())
		}
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return tilde(p.Path) + ": " + p.Err.Error()
	}
	return strings.TrimSuffix(vault.Refuse(err).Message, ".")
}

// parts takes joined errors apart.
func parts(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

// repairHint is the next step for an error of the engine.
func repairHint(err error) string {
	switch {
	case strings.HasPrefix(err.Error(), "checking audit.jsonl"):
		return vault.TryRepair + "     (or put audit.jsonl back from a copy)"
	case errors.Is(err, storage.ErrFull):
		return "free space on the disk"
	case strings.Contains(err.Error(), "--clear"):
		return "solekey doctor --clear     (after a disk check and a reboot)"
	case errors.Is(err, storage.ErrDamaged) && strings.HasPrefix(err.Error(), "checking vault.cells"):
		return vault.TryRepair + " --recovery-key-file FILE"
	case errors.Is(err, storage.ErrDamaged):
		return vault.TryRepair
	case errors.Is(err, fs.ErrPermission):
		return "chown and chmod the data directory back to this account"
	}
	return "solekey doctor     (again)"
}

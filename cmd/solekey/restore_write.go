package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The order of restore: backup read to its end and proven, plan shown and
// confirmed, marker, root text at its source, engine, log, identities, store
// record, marker gone. Until the store record stands nobody can open the
// directory, and running restore again clears it and starts over.

// restoration is the part of a restore that writes.
type restoration struct {
	dir      string
	ar       *vault.Archive
	plan     *vault.Plan
	now      func() time.Time
	progress func(done, total int)
	putRoot  func() error
	shared   bool // the root key was here already
	create   func(dir string) (storage.Backend, error)
}

func createEngine(dir string) (storage.Backend, error) {
	return bolt.Create(dir, replaying(bolt.Options{}))
}

// replaying is the options of an engine that a log is written into anew. Every
// line has its number already, so the engine may add none of its own, as it
// does where a log goes on in a new file.
func replaying(o bolt.Options) bolt.Options {
	o.MaxLog = math.MaxInt64
	return o
}

// run makes the store. It can be repeated after an error or a crash at any
// point.
func (m *restoration) run(ctx context.Context) error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("making the data directory: %w", err)
	}
	marker := filepath.Join(m.dir, restoringName)
	cut, err := m.mayWrite(ctx, marker)
	if err != nil {
		return err
	}
	if err := writeFile(marker, []byte(markerText(m.ar))); err != nil {
		return err
	}
	if err := m.putRoot(); err != nil {
		return err
	}
	if err := m.clear(cut); err != nil {
		return err
	}
	b, err := m.create(m.dir)
	if err != nil {
		return err
	}
	err = m.plan.Restore(ctx, b, vault.RestoreOptions{Now: m.now, Progress: m.progress})
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	if err := os.Remove(marker); err != nil && !errors.Is(err, fs.ErrNotExist) { // another command may have cleared it away
		return fmt.Errorf("finishing the restore: %w", err)
	}
	return syncDirOf(marker)
}

// mayWrite looks at the directory again: a store may have come to stand there
// while the recovery key was typed or a question answered. It reports whether
// a restore that was cut off left what is there.
func (m *restoration) mayWrite(ctx context.Context, marker string) (cut bool, err error) {
	if _, err := os.Lstat(marker); err != nil {
		return false, mustHoldNoStore(m.dir)
	}
	stands, err := storeStands(ctx, m.dir)
	if err == nil && stands {
		return false, failf(exitExists, "%s holds a store; a restore touches none", tilde(m.dir)).hint("solekey restore FILE --into DIR")
	}
	return true, err
}

// clear removes what a restore that was cut off left. Where none was, nothing
// is removed: what appears there beside this restore is not its own.
func (m *restoration) clear(cut bool) error {
	if !cut {
		return nil
	}
	files, err := storeFiles(m.dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("clearing an interrupted restore: %w", err)
		}
	}
	return nil
}

// storeFiles returns the paths of what makes a directory one of a store,
// earlier files of its log among them: they would be read as its beginning.
func storeFiles(dir string) ([]string, error) {
	logs, err := bolt.LogFiles(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, name := range []string{"vault.db", "vault.cells", "audit.jsonl.new", "audit.head", pendingName} {
		logs = append(logs, filepath.Join(dir, name))
	}
	return logs, err
}

func mustHoldNoStore(dir string) error {
	files, err := storeFiles(dir)
	if err != nil {
		return err
	}
	for _, path := range files {
		if _, err := os.Lstat(path); err == nil {
			return failf(exitExists, "%s holds a store, or what is left of one (%s); a restore touches none", tilde(dir), filepath.Base(path)).hint("solekey restore FILE --into DIR")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// storeStands reports whether the store in dir is complete: its store record
// is written last.
func storeStands(ctx context.Context, dir string) (bool, error) {
	b, err := bolt.Open(dir, bolt.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer b.Close()
	id, err := vault.StoreIn(ctx, b)
	return !id.IsZero(), err
}

// beforeRestore refuses a directory with a store in it. One that an earlier
// restore left is taken again, and finished if only the marker is left.
func (a *app) beforeRestore(ctx context.Context, dir string, ar *vault.Archive) (finished bool, err error) {
	if err := isPlace(dir); err != nil {
		return false, err
	}
	marker, err := os.ReadFile(filepath.Join(dir, restoringName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, mustHoldNoStore(dir)
	}
	if err != nil {
		return false, err
	}
	stands, err := storeStands(ctx, dir)
	if err != nil || !stands {
		return false, err
	}
	if string(marker) != markerText(ar) {
		return false, failf(exitExists, "%s holds a store that was restored from another backup", tilde(dir)).hint("solekey restore FILE --into DIR")
	}
	if err := os.Remove(filepath.Join(dir, restoringName)); err != nil {
		return false, fmt.Errorf("finishing the restore: %w", err)
	}
	a.row("restored", "finished", tilde(dir)+" was complete already")
	return true, nil
}

// cutOff reports a directory that an interrupted restore left. The marker
// counts only where no store record stands: beside one it is the last thing
// that a restore did not get to, and is cleared away, so that it can never
// speak against a store in use. What is damaged is left to the engine to name.
func cutOff(dir string) bool {
	marker := filepath.Join(dir, restoringName)
	if _, err := os.Lstat(marker); err != nil {
		return false
	}
	stands, err := storeStands(context.Background(), dir)
	if stands {
		_ = os.Remove(marker)
	}
	return !stands && err == nil
}

// errCutOff is what other commands say of such a directory.
func errCutOff(dir string) error {
	return failf(exitUnavailable, "the restore into %s was interrupted, so it is no store yet", tilde(dir)).hint("solekey restore FILE --into "+shellPath(dir), "rm -r "+shellPath(dir)+"     (to give it up)")
}

func markerText(ar *vault.Archive) string {
	in := ar.Info()
	return in.Store.String() + " " + in.ID + "\n"
}

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// The directories of a repair, and the order of its steps:
//
//  1. NAME.repaired is made, with repair.pending in it.
//  2. The store is built there, as a restore does; until its store record
//     stands, restore.pending says that it is none.
//  3. What else lies in the directory of the store, as receipts, is copied.
//  4. In a turn in which the store is still as it was read: NAME becomes
//     NAME.damaged-TIME, NAME.repaired becomes NAME, the names synced each time.
//  5. repair.pending is removed.
//
// Killed in 1 to 3 the store is as it was, and the next repair clears what was
// built. Killed between the two renames there is no NAME: every command says
// so, and the next repair makes the second rename. After it all is done.

const (
	repairedSuffix = ".repaired"
	damagedInfix   = ".damaged-"
	repairingName  = "repair.pending" // in a directory that a repair has built
	mendName       = "repair.skb"     // the archive that it is built from
)

// site is where a repair takes place.
type site struct {
	dir, work, aside string
	swap             bool     // work takes the name of dir
	marker           *os.File // repair.pending, locked while this process builds
	step             func(string)
}

func newSite(dir, into string, now time.Time) (site, error) {
	s := site{dir: realDir(dir), swap: into == ""}
	s.work, s.aside = s.dir+repairedSuffix, s.dir+damagedInfix+now.UTC().Format("20060102-150405")
	if into == "" {
		return s, nil
	}
	var err error
	if s.work, err = filepath.Abs(into); err != nil {
		return s, err
	}
	if liesIn(s.dir, s.work) {
		return s, failf(exitUsage, "--into names the damaged store, or a directory in it; without it the repaired one takes its place").hint("solekey doctor --repair BACKUP")
	}
	return s, nil
}

// liesIn reports whether path is dir or lies in it, by whatever name.
func liesIn(dir, path string) bool {
	store, err := os.Stat(dir)
	if err != nil {
		return false
	}
	for p := path; ; p = filepath.Dir(p) {
		if is, err := os.Stat(p); err == nil && os.SameFile(store, is) {
			return true
		}
		if p == filepath.Dir(p) {
			return false
		}
	}
}

// realDir follows symbolic links, also to a directory that is not there: a
// rename would move the link.
func realDir(dir string) string {
	for range 16 {
		to, err := os.Readlink(dir)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(dir), to)
		}
		dir = to
	}
	return dir
}

func (s *site) at(step string) {
	if s.step != nil {
		s.step(step)
	}
}

// halfSwapped reports a directory that lacks the second rename of a repair.
func halfSwapped(dir string) bool {
	dir = realDir(dir)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err := os.Lstat(filepath.Join(dir+repairedSuffix, repairingName))
	return err == nil
}

// leftovers names what repairs left beside a store: the directories that it
// had before, and one that was built and is not in place.
func leftovers(dir string) (damaged []string, built string) {
	dir = realDir(dir)
	damaged, _ = filesIn(filepath.Dir(dir), filepath.Base(dir)+damagedInfix, "") // what cannot be listed is not named
	if _, err := os.Lstat(filepath.Join(dir+repairedSuffix, repairingName)); err == nil && !halfSwapped(dir) {
		built = dir + repairedSuffix
	}
	return damaged, built
}

// errHalfSwapped is what other commands say of it.
func errHalfSwapped(dir string) error {
	return failf(exitUnavailable, "the repair of %s was cut off between its last two steps; nothing is lost", tilde(dir)).hint("solekey doctor --repair BACKUP     (it goes on)")
}

// resume finishes a repair that was cut off in its last steps.
func (s *site) resume() (finished bool, err error) {
	if halfSwapped(s.dir) {
		built := s.dir + repairedSuffix
		if cutOff(built) {
			return false, errCutOff(built)
		}
		marker, err := lockMarker(built)
		if err != nil {
			return false, err
		}
		defer marker.Close()
		if err := renameSynced(built, s.dir); err != nil {
			return false, err
		}
		finished = true
	}
	err = os.Remove(filepath.Join(s.dir, repairingName))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return finished, err
}

// prepare makes the directory that the store is built in, and the file for
// the archive.
func (s *site) prepare(ar *vault.Archive) (*os.File, error) {
	if err := s.clear(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.work, 0o700); err != nil {
		return nil, failf(exitUsage, "the repaired store cannot be built: %v", err).hint("solekey doctor --repair BACKUP --into DIR")
	}
	path := filepath.Join(s.work, repairingName)
	marker, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if lockFile(marker) != nil { // whoever has it clears what is here
		return nil, errors.Join(errRepairing(s.work), marker.Close())
	}
	s.marker = marker
	_, err = marker.WriteString(markerText(ar))
	if err := errors.Join(err, marker.Sync(), syncDirOf(path), syncDirOf(s.work)); err != nil {
		return nil, errors.Join(err, s.discard())
	}
	s.at("prepared")
	return os.OpenFile(filepath.Join(s.work, mendName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// lockMarker proves that nobody builds in a directory any more. The file keeps
// the lock until it is closed.
func lockMarker(built string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(built, repairingName), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if lockFile(f) != nil {
		return nil, errors.Join(errRepairing(built), f.Close())
	}
	return f, nil
}

func errRepairing(built string) error {
	return failf(exitExists, "another repair is at work in %s", tilde(built)).hint("the same command, when it has ended")
}

// clear takes away what an earlier repair left, and nothing else.
func (s *site) clear() error {
	entries, err := os.ReadDir(s.work)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return failf(exitUsage, "the repaired store cannot be built: %v", err).hint("solekey doctor --repair BACKUP --into DIR     (a directory that is not there yet)")
	case len(entries) == 0:
		return os.Remove(s.work)
	}
	if s.marker, err = lockMarker(s.work); errors.Is(err, fs.ErrNotExist) {
		return failf(exitExists, "%s is there, and no repair left it", tilde(s.work)).hint("solekey doctor --repair BACKUP --into DIR")
	}
	if err != nil {
		return err
	}
	return s.discard()
}

// discard removes what was built. The cells in it are overwritten first: what
// is shredded in the store later must not be left on the disk. The marker goes
// last, so that a removal that is cut off can be repeated.
func (s *site) discard() error {
	defer s.release()
	if err := scramble(filepath.Join(s.work, "vault.cells")); err != nil {
		return fmt.Errorf("clearing a repair: %w", err)
	}
	entries, err := os.ReadDir(s.work)
	if err != nil {
		return fmt.Errorf("clearing a repair: %w", err)
	}
	for _, e := range entries {
		if e.Name() != repairingName {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.work, e.Name())))
		}
	}
	s.release() // an open file cannot be removed everywhere
	if err = errors.Join(err, os.RemoveAll(s.work)); err != nil {
		return fmt.Errorf("clearing a repair: %w", err)
	}
	return nil
}

// release lets go of the marker.
func (s *site) release() {
	if s.marker != nil {
		_ = s.marker.Close()
		s.marker = nil
	}
}

// scramble fills a file with random bytes, if it is there. What is not a file
// of a repair, as a link that somebody left in the way, is not followed.
func scramble(path string) error {
	was, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !was.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	is, err := f.Stat()
	if err == nil && os.SameFile(was, is) {
		_, err = io.CopyN(f, rand.Reader, is.Size())
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// carryOver copies the subdirectories of the store, as receipts and
// certificates. Its files are those of the engine.
func (s *site) carryOver() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("copying what else is in the directory: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := copyWithin(filepath.Join(s.dir, e.Name()), filepath.Join(s.work, e.Name())); err != nil {
			return fmt.Errorf("copying what else is in the directory: %w", err)
		}
	}
	return syncDirOf(filepath.Join(s.work, repairingName))
}

// copyWithin copies directories and regular files, readable by the owner alone.
func copyWithin(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(dst, 0o700)
		case !e.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return writeFile(dst, b)
	})
}

// finish gives the built store the name of the damaged one, if that is still
// as it was read. It reports whether what was built stays.
func (s *site) finish(ctx context.Context, b *bolt.Store, since bolt.Stamp, mend *os.File) (stays bool, err error) {
	if err := errors.Join(mend.Close(), os.Remove(mend.Name()), syncDirOf(mend.Name())); err != nil {
		return false, err
	}
	s.at("built")
	if !s.swap {
		if err := b.Unchanged(ctx, since, func() error { return nil }); err != nil {
			return false, err
		}
		s.release()
		return true, removeSynced(filepath.Join(s.work, repairingName))
	}
	defer s.release()
	s.aside = unused(s.aside)
	err = b.Unchanged(ctx, since, func() error {
		if err := os.Rename(s.dir, s.aside); err != nil {
			return failf(exitUnavailable, "the directory of the store cannot be renamed: %v", err).hint("solekey doctor --repair BACKUP --into DIR     (a mounted directory cannot be)")
		}
		stays = true
		err := syncDirOf(s.dir)
		s.at("aside")
		return errors.Join(err, renameSynced(s.work, s.dir))
	})
	if err != nil && stays && os.Rename(s.aside, s.dir) == nil { // as it was
		stays = false
	}
	if err != nil {
		return stays, err
	}
	s.at("swapped")
	return true, removeSynced(filepath.Join(s.dir, repairingName))
}

// unused returns a path at which nothing is.
func unused(path string) string {
	for n, p := 2, path; ; n++ {
		if _, err := os.Lstat(p); err != nil {
			return p
		}
		p = fmt.Sprintf("%s-%d", path, n)
	}
}

func renameSynced(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDirOf(to)
}

func removeSynced(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncDirOf(path)
}

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/internal/dotenv"
)

// What import does to the files it has read: references in the place of
// values, and the end of the plaintext. The rules:
//
//   - A symlink, a file with a second name and what is no regular file are
//     refused before anything is stored: what was replaced would live on
//     under the other name.
//   - A file that changed since it was read is left as it is.
//   - A value disappears from a file only once the vault of every identity
//     has it. With --shred the agent's half has compared each of them.
//   - The new file is complete and synced before it takes the name.

// original is a file that is to be rewritten or destroyed. It stays open, so
// that what is overwritten later is the file that was read.
type original struct {
	path string
	file *os.File
	info fs.FileInfo
	raw  []byte
}

func openOriginal(path string, shred bool) (*original, error) {
	seen, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	switch {
	case seen.Mode()&fs.ModeSymlink != 0:
		return nil, failf(exitUsage, "%s is a symbolic link: --write-refs and --shred take the file itself; nothing was stored", path).hint(linkHint(path))
	case !seen.Mode().IsRegular():
		return nil, failf(exitUsage, "%s is not a regular file: --write-refs and --shred cannot replace it", path)
	}
	flag := os.O_RDONLY
	if shred {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	o := &original{path: path, file: f}
	if err := o.read(seen); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (o *original) read(seen fs.FileInfo) error {
	var err error
	if o.info, err = o.file.Stat(); err != nil {
		return err
	}
	if !os.SameFile(seen, o.info) {
		return failf(exitUsage, "%s was replaced while it was read; nothing was stored", o.path)
	}
	if n, err := linkCount(o.file); err != nil || n != 1 {
		return failf(exitUsage, "%s has more than one name (hard links): the plaintext would stay under the others; nothing was stored", o.path).
			hint("find . -samefile " + o.path)
	}
	o.raw, err = io.ReadAll(io.LimitReader(o.file, dotenv.MaxSize+1))
	return err
}

func (o *original) close() { _ = o.file.Close() }

func linkHint(path string) string {
	to, err := filepath.EvalSymlinks(path)
	if err != nil {
		to = "TARGET"
	}
	return "solekey import " + to
}

// unchanged reports whether the path still leads to the file that was read,
// with the content that was read.
func (o *original) unchanged() bool {
	now, err := os.Lstat(o.path)
	if err != nil || !now.Mode().IsRegular() || !os.SameFile(now, o.info) {
		return false
	}
	if n, err := linkCount(o.file); err != nil || n != 1 {
		return false
	}
	b := make([]byte, len(o.raw)+1)
	defer clear(b)
	n, err := o.file.ReadAt(b, 0)
	return errors.Is(err, io.EOF) && bytes.Equal(b[:n], o.raw)
}

func openToOthers(info fs.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0
}

// touched is what happened to one file.
type touched struct {
	source              int
	name                string
	rewritten, shredded bool
	comments            []int // lines of comments that look like secrets and stay
}

func (t *touched) print(a *app) {
	if t.rewritten {
		a.row("file", "rewritten", t.name+": values replaced by solekey:// references")
	}
	if t.shredded {
		what := "overwritten and deleted"
		if t.rewritten {
			what = "old contents overwritten"
		}
		a.row("file", "shredded", t.name+": "+what+", best effort: SSDs, snapshots and copy-on-write file systems may keep old blocks")
		a.say("editors, backups and git may still hold copies of %s", t.name)
	}
	for _, l := range t.comments {
		a.warn("%s:%d is a comment that looks like a secret; it stays in the file", t.name, l)
	}
}

// touch rewrites and shreds the files as far as the flags say.
func (j *importJob) touch(ctx context.Context) ([]touched, error) {
	var done []touched
	for i := range j.sources {
		if j.sources[i].orig == nil {
			continue
		}
		t, err := j.touchOne(ctx, i)
		if t.rewritten || t.shredded {
			done = append(done, t)
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (j *importJob) touchOne(ctx context.Context, i int) (touched, error) {
	src := &j.sources[i]
	t := touched{source: i, name: src.name}
	refs := make(map[string]string)
	for n := range j.plan {
		v := &j.plan[n]
		if v.source != i || !j.inside(v) {
			continue
		}
		if j.flags.shred {
			if err := j.readBack(ctx, v); err != nil {
				return t, err
			}
		}
		refs[v.name] = "solekey://" + string(v.label)
	}
	if ctx.Err() != nil {
		return t, errInterrupted
	}
	if !j.flags.writeRefs {
		if len(j.lost(i)) > j.agreed[i] {
			return t, changedMeanwhile(src.name)
		}
		return t, destroy(src.orig, &t)
	}
	if len(refs) == 0 {
		j.app.say("%s is left as it is: no value in it is in the vault", src.name)
		return t, nil
	}
	fresh := src.file.Rewrite(refs)
	err := replaceOriginal(src.orig, fresh, j.flags.shred, &t)
	if t.rewritten {
		t.comments = leakyComments(fresh)
	}
	return t, err
}

// readBack proves through the agent's half that every vault has the value.
func (j *importJob) readBack(ctx context.Context, v *variable) error {
	for _, s := range j.shares {
		equal, err := s.agent.Same(ctx, v.label, []byte(v.value))
		if err != nil {
			return err
		}
		if !equal {
			return failf(exitExists, "%s of %s reads back as another value; %s is left as it is", v.label, s.info.Name, j.sources[v.source].name)
		}
	}
	return nil
}

// destroy overwrites and deletes a file.
func destroy(o *original, t *touched) error {
	if !o.unchanged() {
		return changedMeanwhile(o.path)
	}
	if err := overwrite(o.file, int64(len(o.raw))); err != nil {
		return fileTrouble("overwriting", o.path, err)
	}
	o.close() // Windows deletes no open file
	if err := os.Remove(o.path); err != nil {
		return fileTrouble("deleting the overwritten file", o.path, err)
	}
	t.shredded = true
	if err := syncDirOf(o.path); err != nil {
		return fileTrouble("deleting", o.path, err)
	}
	return nil
}

func changedMeanwhile(name string) error {
	return failf(exitExists, "%s or the vault changed meanwhile; the file is left as it is", name).hint("solekey import " + name + "     (again)")
}

// fileTrouble words an error of the system about a file of the user's. The
// values are stored by then, so a repetition finds them the same.
func fileTrouble(doing, path string, err error) error {
	return failf(exitInternal, "the values are stored, but %s %s went wrong: %s", doing, path, systemWords(err)).hint("solekey import " + path + "     (again)")
}

// replaceOriginal puts fresh in the place of a file, with its mode and owner,
// and overwrites the old contents if shred says so.
func replaceOriginal(o *original, fresh []byte, shred bool, t *touched) error {
	tmp, err := writeBeside(o, fresh)
	if err != nil {
		return fileTrouble("rewriting", o.path, err)
	}
	if !o.unchanged() {
		_ = os.Remove(tmp)
		return changedMeanwhile(o.path)
	}
	old, err := swap(tmp, o.path, o.file, shred)
	if err != nil {
		_ = os.Remove(tmp)
		return fileTrouble("replacing", o.path, err)
	}
	t.rewritten = true
	if err := syncDirOf(o.path); err != nil {
		return fileTrouble("replacing", o.path, err)
	}
	if !shred {
		return nil
	}
	err = overwrite(old, int64(len(o.raw)))
	if err := errors.Join(err, discard(old)); err != nil {
		return fileTrouble("overwriting the old contents of", o.path, err)
	}
	t.shredded = true
	return nil
}

// writeBeside makes a complete, synced file next to o and returns its path.
func writeBeside(o *original, b []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(o.path), "."+filepath.Base(o.path)+".*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err == nil {
		err = keepOwner(f, o.info)
	}
	if err == nil && runtime.GOOS != "windows" {
		err = f.Chmod(o.info.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// overwrite puts random bytes over the first size bytes of f, which zeros
// might not reach: some file systems store no zeros.
func overwrite(f *os.File, size int64) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		return err
	}
	return f.Sync()
}

// confirmLoss asks before a file is deleted that holds more than what the
// vaults get.
func (j *importJob) confirmLoss(ctx context.Context) error {
	if !j.flags.shred || j.flags.writeRefs {
		return nil
	}
	for i, src := range j.sources {
		lost := j.lost(i)
		j.agreed = append(j.agreed, len(lost))
		if len(lost) == 0 || j.app.conf.yes {
			continue
		}
		question := fmt.Sprintf("%s also holds %s that the vault does not get: %s. Delete it?", src.name, count(len(lost), "variable"), some(lost, 5))
		t, err := openTerminal()
		if err != nil {
			return needsFlag(question, "--write-refs (keeps them), --all (takes them) or --yes (loses them)")
		}
		ok, err := t.confirm(ctx, question)
		t.Close()
		if err != nil {
			return err
		}
		if !ok {
			return errNotConfirmed
		}
	}
	return nil
}

// lost names the variables of a file that are in no vault after the import.
func (j *importJob) lost(i int) []string {
	var out []string
	for n := range j.plan {
		v := &j.plan[n]
		if v.source != i || v.dead || v.twin {
			continue
		}
		kept := v.take
		for _, s := range j.shares {
			kept = kept && (j.puts(s, v) || s.before[v.label] == same)
		}
		if !kept {
			out = append(out, brief(v.name))
		}
	}
	return out
}

// some lists at most n words.
func some(words []string, n int) string {
	if len(words) <= n {
		return strings.Join(words, ", ")
	}
	return strings.Join(words[:n], ", ") + fmt.Sprintf(" and %d more", len(words)-n)
}

// leakyComments returns the lines of comments that set a variable to what
// looks like a secret: an old value that somebody switched off.
func leakyComments(text []byte) []int {
	var out []int
	n := 0
	for row := range bytes.Lines(text) {
		n++
		body, ok := bytes.CutPrefix(bytes.TrimSpace(row), []byte("#"))
		if !ok {
			continue
		}
		f, err := dotenv.Parse(bytes.NewReader(bytes.TrimLeft(body, "# \t")))
		if err != nil {
			continue
		}
		for _, e := range f.Entries() {
			if catalog.Guess(e.Name, e.Value, nil).Action == catalog.Import {
				out = append(out, n)
			}
		}
	}
	return out
}

const (
	gitTime    = 3 * time.Second
	gitCommits = 1000 // more are not counted
)

// commitsOf returns how many commits of the git repository around a file hold
// one of its name; 0 if there is no git, no repository or no answer in time.
// Git is asked for the name, never for a value.
func commitsOf(ctx context.Context, path string) int {
	git, err := exec.LookPath("git")
	if err != nil {
		return 0
	}
	dir, base := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	ctx, cancel := context.WithTimeout(ctx, gitTime)
	defer cancel()
	c := exec.CommandContext(ctx, git, "--no-pager", "--literal-pathspecs", "-c", "log.showSignature=false", "-c", "core.fsmonitor=false",
		"log", "--all", "--format=%H", fmt.Sprintf("--max-count=%d", gitCommits), "--", base)
	c.Dir = dir
	c.Env = append(gitEnvironment(os.Environ()), "GIT_OPTIONAL_LOCKS=0", "GIT_NO_LAZY_FETCH=1", "GIT_TERMINAL_PROMPT=0")
	c.WaitDelay = time.Second
	out, err := c.Output()
	if err != nil {
		return 0
	}
	return bytes.Count(out, []byte("\n"))
}

// gitEnvironment drops what would point git at another repository, and what
// is none of its business.
func gitEnvironment(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "GIT_") && !strings.HasPrefix(kv, "SOLEKEY_") {
			out = append(out, kv)
		}
	}
	return out
}

package bolt

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/solekey/solekey/vault/storage"
)

// How the log goes on in a new file. At its size limit audit.jsonl becomes
// audit-FIRSTSEQ.jsonl, FIRSTSEQ being the number of its first line, and a new
// audit.jsonl begins with a line that says so and that chains on as any other.
//
//  1. audit.head is synced, so that no crash brings back a mark from before
//     the last line of the file.
//  2. audit.jsonl.new gets the first line, and is synced.
//  3. audit.jsonl is renamed to its number, and the directory synced.
//  4. audit.jsonl.new is renamed to audit.jsonl, and the directory synced.
//
// A crash before 3 leaves a file that nobody reads; the next switch writes it
// anew. Between 3 and 4 there is no audit.jsonl: the next holder of the turn
// makes step 4, if the new file continues the newest earlier one, and else
// calls the log missing. After 4 the mark is that of the last line before, and
// the first line continues it; the next lines bring the next mark. All of it happens in one turn, so no other
// process sees the middle; it notices that the path has another file.
//
// A switch never keeps a line from being written: if one of steps 1 to 3
// fails, the file grows on and the switch is tried again later.

const (
	defaultMaxLog = 1 << 30
	switchAgain   = 1 << 20 // growth after which a switch that failed is tried again
)

// errNoSwitch reports a log that cannot be given its name among the earlier
// files.
var errNoSwitch = errors.New("no free name for the file")

// switchDue reports whether the next group belongs into a new file.
func (j *journal) switchDue() bool {
	return j.tail.size >= j.limit && j.tail.size >= j.patience && j.tail.torn == 0 && !j.tail.gap
}

// switchFile moves the log on to a new file if it is time. An error means that
// the log cannot take lines at the moment.
func (j *journal) switchFile() error {
	if !j.switchDue() {
		return nil
	}
	if err := j.prepareSwitch(); err != nil {
		j.patience = j.tail.size + switchAgain
		j.log.Warn("the audit log stays in one file for now", slog.Any("error", err))
		return j.ready()
	}
	j.patience = 0
	if err := j.finishSwitch(); err != nil {
		return faultError("going on in a new "+auditName, err)
	}
	return j.ready()
}

// prepareSwitch makes steps 1 to 3. When it fails, audit.jsonl is in place.
func (j *journal) prepareSwitch() error {
	path := filepath.Join(j.dir, auditName)
	older, err := j.olderName()
	if err != nil {
		return err
	}
	if err := j.mark.store(&j.tail); err != nil {
		return err
	}
	if err := j.mark.f.Sync(); err != nil {
		return err
	}
	j.reach("mark")
	t := j.tail
	first := t.line(nil, noteBody(j.now().UTC().Format(noteTimeForm), 0, storage.NoteNext))
	if err := writeNext(path+newSuffix, first); err != nil {
		return err
	}
	j.reach("new")
	j.valid = false
	_ = j.f.Close() // an open file cannot be renamed everywhere; its lines are synced
	j.f = nil
	if err := os.Rename(path, older); err != nil {
		return err
	}
	j.reach("renamed")
	return nil
}

// writeNext makes the file that the log goes on in.
func writeNext(path string, first []byte) error {
	if err := removeIfThere(path); err != nil {
		return err
	}
	f, err := openChecked(path, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(first)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// olderName returns the path that audit.jsonl gets among the earlier files.
func (j *journal) olderName() (string, error) {
	seq, _, ok := firstLine(j.f)
	if !ok {
		return "", fmt.Errorf("its first line is damaged: %w", errNoSwitch)
	}
	older, err := olderLogs(j.dir)
	if err != nil {
		return "", err
	}
	if n := len(older); n > 0 && older[n-1].first >= seq {
		return "", fmt.Errorf("%s is there: %w", filepath.Base(older[n-1].path), errNoSwitch)
	}
	return filepath.Join(j.dir, olderPrefix+strconv.FormatUint(seq, 10)+olderSuffix), nil
}

// firstLine reads number and chain hash of the first line of f.
func firstLine(f io.ReaderAt) (seq uint64, prev [32]byte, ok bool) {
	b := make([]byte, 128)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, prev, false
	}
	return parseSeq(b[:n])
}

// finishSwitch makes step 4. A crash may have come after step 3.
func (j *journal) finishSwitch() error {
	path := filepath.Join(j.dir, auditName)
	if err := syncDir(j.dir); err != nil {
		return err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return err
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	j.foreign.Store(true) // the mark is to be read with the new file
	j.reach("switched")
	return nil
}

// resumeSwitch ends a switch that was cut off between steps 3 and 4. It
// returns fs.ErrNotExist if none was.
func (j *journal) resumeSwitch() error {
	next, err := os.OpenFile(filepath.Join(j.dir, auditName+newSuffix), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return fs.ErrNotExist
	}
	seq, prev, ok := firstLine(next)
	info, err := next.Stat()
	if err = errors.Join(err, next.Close()); err != nil || !ok || checkInfo(info) != nil {
		return fs.ErrNotExist
	}
	line, err := olderEnd(j.dir)()
	if err != nil {
		return err
	}
	if last, _, ok := parseSeq(line); !ok || last+1 != seq || sha256.Sum256(line) != prev {
		return fs.ErrNotExist
	}
	return j.finishSwitch()
}

// olderLog is an earlier file of the log.
type olderLog struct {
	path  string
	first uint64 // number of its first line, by its name
}

// olderLogs returns the log's earlier files, the oldest first.
func olderLogs(dir string) ([]olderLog, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []olderLog
	for _, e := range all {
		digits, ok := strings.CutPrefix(e.Name(), olderPrefix)
		digits, ok2 := strings.CutSuffix(digits, olderSuffix)
		n, err := strconv.ParseUint(digits, 10, 64)
		if ok && ok2 && err == nil {
			out = append(out, olderLog{path: filepath.Join(dir, e.Name()), first: n})
		}
	}
	slices.SortFunc(out, func(a, b olderLog) int {
		return cmp.Or(cmp.Compare(a.first, b.first), strings.Compare(a.path, b.path))
	})
	return out, nil
}

// LogFiles returns the paths of the files of the log in dir in the order of
// their lines: the earlier ones, then audit.jsonl, whether it is there or not.
func LogFiles(dir string) ([]string, error) {
	older, err := olderLogs(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, o := range older {
		out = append(out, o.path)
	}
	return append(out, filepath.Join(dir, auditName)), nil
}

// olderEnd returns a function that finds the last line of the newest earlier
// file, which a new file continues.
func olderEnd(dir string) func() (line []byte, err error) {
	return func() ([]byte, error) {
		older, err := olderLogs(dir)
		if err != nil || len(older) == 0 {
			return nil, err
		}
		f, err := os.OpenFile(older[len(older)-1].path, os.O_RDONLY|openFlags, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		line, _, err := lastLine(f, info.Size())
		return line, err
	}
}

// reach tells a test which step was made.
func (j *journal) reach(step string) {
	if j.reached != nil {
		j.reached(step)
	}
}

package main

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/solekey/solekey/vault/storage/bolt"
)

// ledger is the log of a lost store: the files of it that are left, read as
// one.
type ledger struct {
	files []*os.File
	at    int
}

// openLedger opens a file of a log, or every file of the log in a directory.
func openLedger(path string) (*ledger, error) {
	paths := []string{path}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		if paths, err = bolt.LogFiles(path); err != nil {
			return nil, failf(exitUsage, "%v", err)
		}
		if _, err := os.Lstat(paths[len(paths)-1]); errors.Is(err, fs.ErrNotExist) {
			paths = paths[:len(paths)-1]
		}
		if len(paths) == 0 {
			return nil, failf(exitUsage, "--ledger: there is no file of a log in %s", tilde(path))
		}
	}
	l := &ledger{}
	for _, p := range paths {
		f, err := openInput(p)
		if err != nil {
			l.close()
			return nil, err
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

// Read implements [io.Reader].
func (l *ledger) Read(b []byte) (int, error) {
	for l.at < len(l.files) {
		n, err := l.files[l.at].Read(b)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		if err != nil {
			l.at++
		}
	}
	return 0, io.EOF
}

// Seek goes back to the beginning, the only place it knows.
func (l *ledger) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, errors.ErrUnsupported
	}
	for _, f := range l.files {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
	}
	l.at = 0
	return 0, nil
}

func (l *ledger) close() {
	for _, f := range l.files {
		_ = f.Close()
	}
}

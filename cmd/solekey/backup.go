package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

func backupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Write a backup of the whole store, while agents are served",
		Long: `Backup writes every vault, as it is sealed, and the audit log into one file.
Agents are served meanwhile. The root key and the shred keys of the vaults
travel in it, sealed to the recovery key: the file opens nothing without it,
and with it no value leaves without a key of its agent or the recovery key
itself. Keep the file and the recovery key apart.

The file is readable by you alone, written under another name, read back,
verified and then renamed. With - the backup goes to stdout and is not read
back; solekey restore FILE --verify does that.

A store made with --no-recovery has a backup that opens only beside the root
key and the cell file of this machine.`,
		Example: `  solekey backup /mnt/nas/solekey-2026-11-23.skb
  solekey backup - | ssh nas 'cat > solekey.skb'`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.backup(cmd.Context(), args[0]) },
	}
}

// backupResult is what backup says with --json.
type backupResult struct {
	Backup     string `json:"backup"`
	File       string `json:"file,omitempty"`
	Bytes      int64  `json:"bytes"`
	Identities int    `json:"identities"`
	Records    int    `json:"records"`
	Lines      int    `json:"audit_records"`
	Verified   bool   `json:"verified"`
	Opens      string `json:"opens_with"` // recovery_key, or cells of this machine
	Damaged    int    `json:"damaged"`
	Unreadable int    `json:"unreadable"`
}

func (a *app) backup(ctx context.Context, path string) error {
	if path == "-" && isTerminal(a.stdout) {
		return failf(exitUsage, "a backup is not for a terminal").hint("solekey backup FILE", "solekey backup - > FILE")
	}
	if path != "-" {
		if err := a.beforeBackup(ctx, path); err != nil {
			return err
		}
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	bar := a.progress("backup", "identities")
	defer bar.end()
	o := vault.BackupOptions{Progress: bar.show}
	var rep vault.BackupReport
	if path == "-" {
		rep, err = k.Backup(ctx, a.stdout, o)
	} else {
		rep, err = backupFile(ctx, k, path, o)
	}
	bar.end()
	if err != nil {
		return err
	}
	return a.backupDone(path, rep)
}

// beforeBackup asks before another file is replaced. It refuses the data
// directory: a yes there would replace a file of the store, and a backup in it
// is lost with it.
func (a *app) beforeBackup(ctx context.Context, path string) error {
	if path == "" {
		return failf(exitUsage, "a backup needs the name of a file").hint("solekey backup FILE")
	}
	if in, err := a.inStore(path); err != nil {
		return err
	} else if in {
		return failf(exitUsage, "a backup in the data directory is lost with it, and may take the place of a file of the store").hint("solekey backup FILE     (on another disk or machine)")
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return failf(exitUsage, "%s is not a file", tilde(path)).hint("solekey backup FILE")
	case err == nil:
		return a.confirm(ctx, fmt.Sprintf("%s exists. Replace it?", tilde(path)))
	case !errors.Is(err, fs.ErrNotExist):
		return failf(exitUsage, "the backup cannot be written: %v", err)
	}
	return nil
}

// leftFor is how old the temporary file of a backup is that nobody writes any
// more.
const leftFor = 24 * time.Hour

// sweep removes what backups that were killed left beside path: of a file of
// this name, or of any that is named as backups are.
func sweep(path string, now time.Time) {
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // the backup itself says what is wrong with the place
	}
	for _, f := range files {
		stem, number := strings.TrimSuffix(f.Name(), filepath.Ext(f.Name())), strings.TrimPrefix(filepath.Ext(f.Name()), ".")
		if number == "" || strings.Trim(number, "0123456789") != "" || stem != "."+filepath.Base(path) && !(strings.HasPrefix(stem, ".") && filepath.Ext(stem) == ".skb") {
			continue
		}
		if info, err := f.Info(); err == nil && info.Mode().IsRegular() && now.Sub(info.ModTime()) > leftFor {
			_ = os.Remove(filepath.Join(filepath.Dir(path), f.Name()))
		}
	}
}

// backupFile makes the file: whole, verified and durable under its name, or
// not there.
func backupFile(ctx context.Context, k *vault.Keeper, path string, o vault.BackupOptions) (rep vault.BackupReport, err error) {
	sweep(path, time.Now())
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return rep, failf(exitUsage, "the backup cannot be written: %v", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if rep, err = k.Backup(ctx, f, o); err != nil {
		return rep, err
	}
	if err = f.Sync(); err != nil {
		return rep, err
	}
	if _, err = vault.OpenArchive(ctx, f); err != nil {
		return rep, fmt.Errorf("reading the backup back: %w", err)
	}
	if err = f.Close(); err != nil {
		return rep, err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return rep, err
	}
	return rep, syncDirOf(path)
}

// backupDone says what was written. stdout may be the backup itself.
func (a *app) backupDone(path string, rep vault.BackupReport) error {
	with, opens := "recovery_key", "opens only with the recovery key"
	if !rep.Sealed {
		with, opens = "cells", "opens only beside the root key and the cell file of this machine"
	}
	verified := "read back and verified; "
	if path == "-" {
		verified = ""
	}
	line := fmt.Sprintf("%s, %s, %s", size(rep.Bytes), count(rep.Identities, "identity"), verified+opens)
	switch {
	case a.conf.asJSON:
		out := backupResult{
			Backup: rep.ID, Bytes: rep.Bytes, Identities: rep.Identities, Records: rep.Records, Lines: rep.Lines,
			Verified: path != "-", Opens: with, Damaged: rep.Damaged, Unreadable: rep.Unreadable,
		}
		w := a.stderr
		if path != "-" {
			w, out.File = a.stdout, path
		}
		if err := a.jsonTo(w, out); err != nil {
			return err
		}
	case path == "-":
		a.say("%-8s  %s", "backup", line)
	default:
		a.row("backup", "", line)
	}
	return a.backupWarnings(rep)
}

func (a *app) backupWarnings(rep vault.BackupReport) error {
	if !rep.Sealed {
		a.warn("this store has no recovery key: if this machine is lost, the backup is lost with it")
	}
	if rep.Damaged > 0 {
		a.warn("%s cannot be opened; the backup holds what is there: solekey doctor", count(rep.Damaged, "identity"))
	}
	if rep.Unreadable > 0 {
		a.warn("%s cannot be read and missing in the backup: solekey doctor", countIs(rep.Unreadable, "identity"))
	}
	if rep.Damaged+rep.Unreadable > 0 {
		return reported{exit: exitFindings}
	}
	return nil
}

func countIs(n int, noun string) string {
	if n == 1 {
		return count(n, noun) + " is"
	}
	return count(n, noun) + " are"
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return count(int(n), "byte")
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// progress is one line on a terminal that says how far a long command is. It
// appears after half a second and is redrawn ten times a second at most.
type progress struct {
	w           io.Writer // nil: nobody watches
	what, unit  string
	began, last time.Time
	shown       bool
}

func (a *app) progress(what, unit string) *progress {
	p := &progress{what: what, unit: unit, began: time.Now()}
	if isTerminal(a.stderr) && !a.conf.quiet && !a.conf.asJSON {
		p.w = a.stderr
	}
	return p
}

const (
	progressAfter = 500 * time.Millisecond
	progressEvery = 100 * time.Millisecond
)

func (p *progress) show(done, total int) {
	if p.w == nil {
		return
	}
	now := time.Now()
	if now.Sub(p.began) < progressAfter || now.Sub(p.last) < progressEvery || done == 0 {
		return
	}
	left := time.Duration(float64(now.Sub(p.began)) / float64(done) * float64(total-done))
	p.last, p.shown = now, true
	fmt.Fprintf(p.w, "\r%s  %d%%  %d/%d %s  %d s left\x1b[K", p.what, 100*done/total, done, total, p.unit, int(left.Seconds()+0.999))
}

// end takes the line away.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

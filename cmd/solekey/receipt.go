package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/solekey/solekey/vault"
)

const receiptDir = "receipts"

// revoke closes keys, keeps the receipt and prints what it says. The receipt
// is written before a shred erases anything.
func (a *app) revoke(ctx context.Context, k *vault.Keeper, i vault.Info, r vault.Revocation, extra string) error {
	dir, err := a.storeDir()
	if err != nil {
		return err
	}
	if extra != "" { // found out before anything is closed
		if _, err := os.Lstat(extra); err == nil {
			return failf(exitExists, "--receipt: %s exists already", extra)
		}
	}
	var path string
	var unkept error
	r.Keep = func(rec vault.Receipt) error {
		kept, err := keepReceipt(dir, rec)
		if err == nil {
			path = kept
		}
		if extra != "" {
			err = errors.Join(err, writeReceipt(extra, rec))
		}
		if err != nil {
			unkept = err
		}
		return err
	}
	rec, err := k.Revoke(context.WithoutCancel(ctx), i.ID, r)
	if rec.EffectiveAt.IsZero() && err != nil {
		return err
	}
	if a.conf.asJSON {
		if jsonErr := a.writeJSON(rec); jsonErr != nil {
			return jsonErr
		}
	} else {
		a.printReceipt(rec, i, path)
	}
	if unkept != nil && errors.Is(err, unkept) {
		return receiptLost(unkept, i.Name)
	}
	return err
}

// receiptLost is the error of a revocation that is in effect although its
// receipt could not be written.
func receiptLost(err error, name string) error {
	f := failf(exitInternal, "the keys are closed; only the receipt was not written%s", because(err))
	if errors.Is(err, syscall.ENOSPC) {
		f = failf(exitUnavailable, "the keys are closed; only the receipt was not written: the disk is full")
	}
	if name == "" {
		return f.hint("solekey doctor")
	}
	return f.hint("solekey audit tail --identity " + name + "     (what the keys were given)")
}

// keepReceipt writes a receipt into the data directory under a name of its
// own.
func keepReceipt(dir string, rec vault.Receipt) (string, error) {
	if err := os.MkdirAll(filepath.Join(dir, receiptDir), 0o700); err != nil {
		return "", err
	}
	base := rec.ID
	if base == "" { // a damaged identity has no name
		base = rec.EffectiveAt.UTC().Format(time.DateOnly) + "-" + rec.Identity.ID
	}
	for n := 1; ; n++ {
		name := base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		path := filepath.Join(dir, receiptDir, name+".json")
		err := writeReceipt(path, rec)
		if !errors.Is(err, fs.ErrExist) {
			return path, err
		}
	}
}

// writeReceipt makes a file that its owner alone can read.
func writeReceipt(path string, rec vault.Receipt) error {
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return writeNew(path, append(b, '\n'))
}

func (a *app) printReceipt(rec vault.Receipt, i vault.Info, path string) {
	a.printSealed(rec, i, path, "signed")
}

// printSealed prints a receipt with a word about its signature.
func (a *app) printSealed(rec vault.Receipt, i vault.Info, path, signed string) {
	if a.conf.quiet {
		return
	}
	closed := 0
	for _, s := range i.Slots {
		if !s.Closed && slices.Contains(rec.Keys, s.ID.String()) {
			closed++
		}
	}
	if rec.Action == "key-revoke" {
		fmt.Fprintf(a.stdout, "revoked   %s  key %s of %s\n", stamp(rec.EffectiveAt), strings.Join(rec.Keys, ", "), i.Name)
	} else {
		fmt.Fprintf(a.stdout, "revoked   %s  %s closed\n", stamp(rec.EffectiveAt), count(closed, "key"))
	}
	if rec.Action == "shred" {
		how := map[string]string{
			"in_place":    "vault key overwritten in place",
			"best_effort": "vault key overwritten; best effort, as this file system may keep old blocks",
		}[rec.Erasure]
		if how == "" {
			how = "vault key destroyed"
		}
		fmt.Fprintf(a.stdout, "shredded  %s\n", how)
	}
	a.printRotate(rec, i.Name)
	fmt.Fprintf(a.stdout, "NO NEED   %s\n", noNeed(rec))
	if path != "" {
		audit := "audit complete"
		if !rec.Audit.Complete {
			audit = "the audit log is not complete, so neither is this list"
		}
		fmt.Fprintf(a.stdout, "receipt   %s (%s; %s)\n", tilde(path), signed, audit)
	}
}

// printRotate lists what must be rotated at its provider. A value that was
// replaced since it was read is named too: it may be alive there still.
func (a *app) printRotate(rec vault.Receipt, name string) {
	if len(rec.Revealed) == 0 {
		return
	}
	fmt.Fprintf(a.stdout, "ROTATE THESE %d at their provider: %s has had the plaintext\n", len(rec.Revealed), name)
	var rows [][]string
	for _, l := range rec.Revealed {
		where := dash(l.RotateURL)
		if !l.Current {
			where += "  (replaced here since; make sure the old one is dead)"
		}
		rows = append(rows, []string{"", l.Label, fmt.Sprintf("v%d", l.Version), count(l.Times, "read"), "last " + stamp(l.LastAt), where})
	}
	width := make([]int, 6)
	for _, r := range rows {
		for i, c := range r {
			width[i] = max(width[i], len(c))
		}
	}
	for _, r := range rows {
		fmt.Fprintln(a.stdout, strings.TrimRight(line(r, width, make([]bool, 6)), " "))
	}
}

func noNeed(rec vault.Receipt) string {
	var parts []string
	if rec.Counts.Untouched > 0 || len(rec.Codes) == 0 {
		verb := "were"
		if rec.Counts.Untouched == 1 {
			verb = "was"
		}
		parts = append(parts, fmt.Sprintf("%d %s never touched", rec.Counts.Untouched, verb))
	}
	if n := len(rec.Codes); n > 0 {
		codes := 0
		for _, c := range rec.Codes {
			codes += c.Times
		}
		parts = append(parts, fmt.Sprintf("%d totp gave %s (seed stayed)", n, count(codes, "code")))
	}
	return strings.Join(parts, ", ")
}

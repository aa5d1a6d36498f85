package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// maxCheckpoints bounds a file of checkpoints: one a day for a century.
const maxCheckpoints = 16 << 20

// verifyFlags say what the log is compared with.
type verifyFlags struct {
	checkpoint string
	from       uint64
}

func auditVerifyCommand(a *app) *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use:   "verify",
		Short: "Prove that no line of the log was changed, dropped or moved",
		Long: `Verify follows the chain of hashes through the whole log and compares its
end with the store. It exits with 8 and names every line that is wrong, and
says which changes a line announces that were not applied. It changes nothing.

A rollback of the whole data directory, or a log that was rewritten together
with its mark, shows only against a checkpoint that was kept elsewhere:
--checkpoint takes the file that solekey audit checkpoint wrote, - for standard
input. Where earlier files of the log were moved away, --from names the first
line that is left.`,
		Example: `  solekey audit verify --checkpoint /mnt/elsewhere/solekey.checkpoints
  solekey audit verify --from 3120442`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.auditVerify(cmd.Context(), f) },
	}
	c.Flags().StringVar(&f.checkpoint, "checkpoint", "", "compare with the checkpoints in this file")
	c.Flags().Uint64Var(&f.from, "from", 0, "first line that is expected to be there")
	return c
}

func (a *app) auditVerify(ctx context.Context, f verifyFlags) error {
	out := vault.Outside{From: max(f.from, 1) - 1}
	if f.checkpoint != "" {
		var err error
		if out.Checkpoints, err = a.checkpoints(f.checkpoint); err != nil {
			return err
		}
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	rep, err := k.VerifyAuditAgainst(ctx, out)
	if err != nil {
		return err
	}
	return a.report(rep, countCheckpoints(out.Checkpoints))
}

// checkpoints reads a file of checkpoints.
func (a *app) checkpoints(path string) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, failf(exitUsage, "--checkpoint %s cannot be read: %s", path, systemWords(err))
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxCheckpoints+1))
	switch {
	case err != nil:
		return nil, failf(exitUsage, "--checkpoint %s cannot be read: %s", path, systemWords(err))
	case len(b) > maxCheckpoints:
		return nil, failf(exitUsage, "--checkpoint %s is larger than any file of checkpoints", path)
	case len(b) == 0:
		return nil, failf(exitUsage, "--checkpoint %s is empty", path)
	}
	return b, nil
}

// countCheckpoints counts the notes in a file of them.
func countCheckpoints(b []byte) int { return bytes.Count(b, []byte("\n\n— ")) }

// report prints what a verification found. It returns the exit code as an
// error.
func (a *app) report(rep audit.Report, checkpoints int) error {
	head := hex.EncodeToString(rep.Head[:])
	if a.conf.asJSON {
		if err := a.writeJSON(reportJSON(rep, head, checkpoints)); err != nil {
			return err
		}
	} else {
		a.printReport(rep, head, checkpoints)
	}
	if !rep.OK() {
		return reported{exit: exitFindings}
	}
	return nil
}

func (a *app) printReport(rep audit.Report, head string, checkpoints int) {
	for _, p := range rep.Notes {
		if !a.conf.quiet {
			fmt.Fprintf(a.stdout, "note      %s\n", p)
		}
	}
	if rep.OK() {
		fit, keep := "", " (solekey audit checkpoint FILE keeps it elsewhere, signed)"
		if checkpoints > 0 {
			fit, keep = ", "+count(checkpoints, "checkpoint")+" compared", ""
		}
		a.row("ok", "", fmt.Sprintf("%s%s, no gap%s; head %s%s", records(rep.Lines), beginning(rep), fit, head, keep))
		return
	}
	for _, p := range rep.Problems {
		fmt.Fprintf(a.stdout, "fail      %s\n", p)
	}
	fmt.Fprintf(a.stdout, "fail      %s read%s, %s\n", records(rep.Lines), beginning(rep), count(len(rep.Problems), "problem"))
	a.say("  try: solekey doctor")
}

// beginning says with which line the log begins, if it is not the first.
func beginning(rep audit.Report) string {
	if rep.First == 0 {
		return ""
	}
	return fmt.Sprintf(" from line %d on", rep.First+1)
}

func reportJSON(rep audit.Report, head string, checkpoints int) any {
	type problem struct {
		Line    int    `json:"line,omitempty"`
		Problem string `json:"problem"`
	}
	list := func(ps []audit.Problem) []problem {
		out := []problem{}
		for _, p := range ps {
			out = append(out, problem{Line: p.Line, Problem: p.Text})
		}
		return out
	}
	return struct {
		OK          bool      `json:"ok"`
		From        uint64    `json:"from"`
		Records     int       `json:"records"`
		Head        string    `json:"head"`
		Checkpoints int       `json:"checkpoints"`
		Problems    []problem `json:"problems"`
		Count       int       `json:"count"`
		Notes       []problem `json:"notes"`
	}{
		OK: rep.OK(), From: rep.First + 1, Records: rep.Lines, Head: head, Checkpoints: checkpoints,
		Problems: list(rep.Problems), Count: len(rep.Problems), Notes: list(rep.Notes),
	}
}

func auditCheckpointCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint [FILE|-]",
		Short: "Sign the end of the log, to be kept elsewhere",
		Long: `Checkpoint verifies the log and prints a signed statement of its end: the
store, the number of the last line, its hash and the time. Given a FILE it adds
the statement to those in it, after comparing the log with them. A log with
anything wrong is not signed: exit code 8.

Keep the file where who can change the data directory cannot: on another
machine, or where a program may only append. It holds no secret. Then
solekey audit verify --checkpoint FILE finds a data directory that was rolled
back and a log that was rewritten.`,
		Example: `  solekey audit checkpoint /mnt/elsewhere/solekey.checkpoints
  solekey audit checkpoint | ssh keeper 'cat >> solekey.checkpoints'`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.auditCheckpoint(cmd.Context(), cmp.Or(strings.Join(args, ""), "-"))
		},
	}
}

func (a *app) auditCheckpoint(ctx context.Context, path string) error {
	out := vault.Outside{From: audit.AnyFirst}
	if path != "-" {
		if err := a.keptElsewhere(path); err != nil {
			return err
		}
		switch info, err := os.Stat(path); {
		case err == nil && info.Size() > 0:
			if out.Checkpoints, err = a.checkpoints(path); err != nil {
				return err
			}
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return failf(exitUsage, "%s cannot be read: %s", path, systemWords(err))
		}
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	note, rep, err := k.Checkpoint(ctx, out)
	if err != nil {
		return err
	}
	if !rep.OK() {
		talk := *a
		if path == "-" { // stdout may be added to a file of checkpoints that cannot be mended
			talk.stdout = a.stderr
		}
		return talk.report(rep, countCheckpoints(out.Checkpoints))
	}
	if path == "-" {
		_, err = a.stdout.Write(note)
		return err
	}
	if err := addCheckpoint(path, note); err != nil {
		return failf(exitUsage, "%s cannot be written: %s", path, systemWords(err))
	}
	if a.conf.asJSON {
		return a.writeJSON(reportJSON(rep, hex.EncodeToString(rep.Head[:]), countCheckpoints(out.Checkpoints)+1))
	}
	a.row("signed", "", fmt.Sprintf("%s%s; %s holds %s", records(rep.Lines), beginning(rep), tilde(path), count(countCheckpoints(out.Checkpoints)+1, "checkpoint")))
	return nil
}

// keptElsewhere refuses a file in the data directory: who can change the log
// can remove it.
func (a *app) keptElsewhere(path string) error {
	in, err := a.inStore(path)
	if err == nil && in {
		return failf(exitUsage, "a checkpoint in the data directory shows nothing: who can change the log can change it").hint("solekey audit checkpoint FILE     (on another disk or machine)")
	}
	return err
}

// inStore reports whether a file that a person named lies in the data
// directory, or would.
func (a *app) inStore(path string) (bool, error) {
	dir, err := a.storeDir()
	if err != nil {
		return false, err
	}
	store, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, nil // what is wrong with it shows when it is opened
	}
	places := []string{filepath.Dir(path)}
	if to, err := filepath.EvalSymlinks(path); err == nil {
		places = append(places, filepath.Dir(to))
	}
	for _, p := range places {
		at, err1 := filepath.EvalSymlinks(p)
		abs, err2 := filepath.Abs(at)
		rel, err3 := filepath.Rel(store, abs)
		if errors.Join(err1, err2, err3) == nil && filepath.IsLocal(rel) {
			return true, nil
		}
	}
	return false, nil
}

// addCheckpoint appends a checkpoint to a file and syncs it.
func addCheckpoint(path string, note []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(note)
	return errors.Join(err, f.Sync(), f.Close())
}

package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

func auditCommand(a *app) *cobra.Command {
	return group("audit", "Show, verify and export the log of every attempt", `  solekey audit tail -n 50
  solekey audit verify
  solekey audit checkpoint /mnt/elsewhere/solekey.checkpoints
  solekey audit export --from 2026-11-01 --format csv > nov.csv`,
		auditTailCommand(a), auditVerifyCommand(a), auditCheckpointCommand(a), auditExportCommand(a))
}

const exitFindings = 8 // a check ran and found problems

// tailFlags say which lines tail shows.
type tailFlags struct {
	n      int
	follow bool
	label  string
	denied bool
}

func auditTailCommand(a *app) *cobra.Command {
	var f tailFlags
	c := &cobra.Command{
		Use:   "tail",
		Short: "Show the newest lines of the log",
		Long: `Tail shows the newest lines of the audit log: when, whether it was allowed,
whose vault, what was called, on which label, with which key, from where.
Values are not in the log. With -f it goes on until it is interrupted.`,
		Example: `  solekey audit tail -n 50 --identity claude-code
  solekey audit tail -f --denied`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.auditTail(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.IntVarP(&f.n, "lines", "n", 20, "how many lines")
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on showing lines as they are written")
	fl.StringVar(&f.label, "label", "", "only lines about labels that match this glob")
	fl.BoolVar(&f.denied, "denied", false, "only refused attempts")
	return c
}

// lineFilter says which lines are wanted.
type lineFilter struct {
	names  []identity.Glob
	ids    []string
	label  identity.Glob
	denied bool
}

func (a *app) lineFilter(ctx context.Context, k *vault.Keeper, f tailFlags) (lineFilter, error) {
	out := lineFilter{denied: f.denied}
	var err error
	if f.label != "" {
		if out.label, err = identity.ParseGlob(f.label); err != nil {
			return out, failf(exitUsage, "--label takes a glob of label characters, * and ?")
		}
	}
	for _, name := range a.conf.identities {
		if strings.ContainsAny(name, "*?") {
			g, err := identity.ParseGlob(name)
			if err != nil {
				return out, failf(exitUsage, "--identity: not a name or glob")
			}
			out.names = append(out.names, g)
			continue
		}
		info, err := a.find(ctx, k, name)
		if err != nil {
			return out, err
		}
		out.ids = append(out.ids, info.ID.String())
	}
	return out, nil
}

func (f lineFilter) wants(l vault.AuditLine) bool {
	if f.denied && !l.Denied {
		return false
	}
	if f.label != "" && !slices.ContainsFunc(l.Labels, f.label.Match) {
		return false
	}
	if len(f.names) == 0 && len(f.ids) == 0 {
		return true
	}
	return slices.Contains(f.ids, l.Identity.String()) ||
		l.Name != "" && slices.ContainsFunc(f.names, func(g identity.Glob) bool { return g.Match(l.Name) })
}

func (a *app) auditTail(ctx context.Context, f tailFlags) error {
	if f.n < 0 {
		return failf(exitUsage, "-n takes a number of lines")
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	want, err := a.lineFilter(ctx, k, f)
	if err != nil {
		return err
	}
	p := &linePrinter{app: a}
	grown, err := a.logGrowth() // before the first reading, so that nothing falls between
	if err != nil {
		return err
	}
	next, err := tailOnce(ctx, k, want, f.n, 0, p)
	if err != nil || !f.follow {
		return err
	}
	return a.follow(ctx, grown, func() (err error) {
		next, err = tailOnce(ctx, k, want, -1, next, p)
		return err
	})
}

// tailOnce prints the last n wanted lines from sequence number from on, all
// of them if n is negative, and returns the number that comes next.
func tailOnce(ctx context.Context, k *vault.Keeper, want lineFilter, n int, from uint64, p *linePrinter) (uint64, error) {
	var kept []vault.AuditLine
	next := from
	for l, err := range k.Audit(ctx) {
		if err != nil {
			return next, brokenLog(err, p.print(kept))
		}
		if l.Seq < from {
			continue
		}
		next = l.Seq + 1
		if !want.wants(l) {
			continue
		}
		if kept = append(kept, l); n >= 0 && len(kept) > 2*n+64 {
			kept = slices.Delete(kept, 0, len(kept)-n)
		}
	}
	if n >= 0 && len(kept) > n {
		kept = kept[len(kept)-n:]
	}
	return next, p.print(kept)
}

// brokenLog words a log that cannot be read to its end. The lines before the
// break were shown.
func brokenLog(err, shown error) error {
	if shown != nil {
		return shown
	}
	if vault.Refuse(err).Word != vault.Internal {
		return err
	}
	return failf(exitUnavailable, "%v", err).hint("solekey audit verify")
}

// pollEvery is how often tail -f looks for lines.
const pollEvery = 250 * time.Millisecond

// follow calls read whenever the log has grown, until ctx ends. Being
// interrupted is how it ends, so that is no error.
func (a *app) follow(ctx context.Context, grown func() bool, read func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !grown() {
			continue
		}
		if err := read(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// logGrowth returns a function that reports whether the log may have got
// lines since the last call. It looks at the file and its size, so that a log
// that rests costs no reading and keeps no other process from its turn.
func (a *app) logGrowth() (func() bool, error) {
	dir, err := a.storeDir()
	if err != nil {
		return nil, err
	}
	look := func() os.FileInfo {
		info, err := os.Stat(filepath.Join(dir, "audit.jsonl"))
		if err != nil {
			return nil
		}
		return info
	}
	last := look()
	return func() bool {
		now, was := look(), last
		last = now
		if now == nil || was == nil {
			return now != was
		}
		return now.Size() != was.Size() || !os.SameFile(now, was) // it goes on in a new file at times
	}, nil
}

// records writes a number of lines with its thousands apart.
func records(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if n == 1 {
		return s + " record"
	}
	return s + " records"
}

package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

func auditCommand(a *app) *cobra.Command {
	return group("audit", "Show, verify and export the log of every attempt", `  solekey audit tail -n 50
  solekey audit verify
  solekey audit export --from 2026-11-01 --format csv > nov.csv`,
		auditTailCommand(a), auditVerifyCommand(a), auditExportCommand(a))
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
// lines since the last call. It looks at the file's size, so that a log that
// rests costs no reading and keeps no other process from its turn.
func (a *app) logGrowth() (func() bool, error) {
	dir, err := a.storeDir()
	if err != nil {
		return nil, err
	}
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, "audit.jsonl"))
		if err != nil {
			return -1
		}
		return info.Size()
	}
	last := size()
	return func() bool {
		now := size()
		was := last
		last = now
		return now != was
	}, nil
}

func auditVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Prove that no line of the log was changed, dropped or moved",
		Long: `Verify follows the chain of hashes through the whole log and compares its
end with the store. It exits with 8 and names every line that is wrong. A
rollback of the whole data directory shows only against a head that was kept
elsewhere.`,
		Example: "  solekey audit verify | tee -a /mnt/elsewhere/heads.txt",
		Args:    usageArgs(cobra.NoArgs),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.auditVerify(cmd.Context()) },
	}
}

func (a *app) auditVerify(ctx context.Context) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	rep, err := k.VerifyAudit(ctx)
	if err != nil {
		return err
	}
	head := hex.EncodeToString(rep.Head[:])
	if a.conf.asJSON {
		err = a.writeJSON(reportJSON(rep, head))
	} else {
		a.printReport(rep, head)
	}
	if err == nil && !rep.OK() {
		err = reported{exit: exitFindings}
	}
	return err
}

func (a *app) printReport(rep audit.Report, head string) {
	if rep.OK() {
		a.row("ok", "", fmt.Sprintf("%s, no gap; head %s (keep this line elsewhere to detect a rollback)", records(rep.Lines), head))
		return
	}
	for _, p := range rep.Problems {
		fmt.Fprintf(a.stdout, "fail      %s\n", p)
	}
	fmt.Fprintf(a.stdout, "fail      %s read, %s\n", records(rep.Lines), count(len(rep.Problems), "problem"))
	a.say("  try: solekey doctor")
}

func reportJSON(rep audit.Report, head string) any {
	type problem struct {
		Line    int    `json:"line,omitempty"`
		Problem string `json:"problem"`
	}
	out := struct {
		OK       bool      `json:"ok"`
		Records  int       `json:"records"`
		Head     string    `json:"head"`
		Problems []problem `json:"problems"`
		Count    int       `json:"count"`
	}{OK: rep.OK(), Records: rep.Lines, Head: head, Problems: []problem{}, Count: len(rep.Problems)}
	for _, p := range rep.Problems {
		out.Problems = append(out.Problems, problem{Line: p.Line, Problem: p.Text})
	}
	return out
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

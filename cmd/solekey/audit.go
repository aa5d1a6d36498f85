package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
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
		info, err := k.Find(ctx, name)
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

// linePrinter prints audit lines; its columns grow as lines come.
type linePrinter struct {
	app   *app
	width [6]int
}

func (p *linePrinter) print(ls []vault.AuditLine) error {
	if p.app.conf.asJSON {
		for _, l := range ls {
			if err := p.app.writeJSON(jsonLine(l)); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][7]string, len(ls))
	for i, l := range ls {
		rows[i] = cellsOf(l)
		for c := range p.width {
			p.width[c] = max(p.width[c], len(rows[i][c]))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for c, w := range p.width {
			fmt.Fprintf(&b, "%-*s  ", w, r[c])
		}
		b.WriteString(r[6] + "\n")
	}
	_, err := io.WriteString(p.app.stdout, b.String())
	return err
}

// cellsOf are time, result, identity, event, subject, key and origin.
func cellsOf(l vault.AuditLine) [7]string {
	return [7]string{
		l.Time.UTC().Format(time.RFC3339), resultWord(l.Record), ownerOf(l), eventWord(l.Event), subject(l),
		cmp.Or(ascii(l.Key), "-"), cmp.Or(ascii(l.From), ascii(l.Via), "-"),
	}
}

func resultWord(r audit.Record) string {
	if r.Denied {
		return "deny"
	}
	return "allow"
}

// ownerOf is the name of the identity, the start of its ID once it is shredded.
func ownerOf(l vault.AuditLine) string {
	switch {
	case l.Identity.IsZero():
		return "-"
	case l.Name == "":
		return l.Identity.String()[:8]
	}
	return l.Name
}

// eventWord is the event by the name of the tool or command that causes it.
func eventWord(e audit.Event) string {
	switch e {
	case audit.Genesis:
		return "init"
	case audit.Auth:
		return "unlock"
	case audit.List:
		return "list_labels"
	case audit.Get:
		return "get_secret"
	case audit.Code:
		return "get_totp_code"
	case audit.Remove:
		return "rm"
	}
	return ascii(string(e))
}

// subject says what a line is about: why it was refused, the label, how many.
func subject(l vault.AuditLine) string {
	var words []string
	if l.Denied {
		words = append(words, ascii(l.Why))
	}
	refs := l.Record.Labels
	switch {
	case len(refs) == 1 && l.Denied:
		if l.Labels[0] != refs[0].Tag.String() {
			words = append(words, l.Labels[0])
		}
	case len(refs) == 1:
		words = append(words, fmt.Sprintf("%s v%d", l.Labels[0], refs[0].Version))
	case len(refs) > 1:
		words = append(words, count(len(refs), "label"))
	case l.Event == audit.List && !l.Denied:
		words = append(words, strconv.Itoa(l.N))
	case l.Slot != "":
		words = append(words, "key "+ascii(l.Slot))
	case l.Event == audit.Genesis:
		id, _, _ := strings.Cut(l.Note, " ")
		words = append(words, "store "+ascii(id[:min(8, len(id))]))
	case l.Note != "":
		words = append(words, ascii(l.Note))
	}
	return cmp.Or(strings.Join(words, " "), "-")
}

// ascii makes text of a line fit for a terminal: who can write to the log
// could otherwise write to the terminal of its reader.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// labelOf is a label in a JSON line.
type labelOf struct {
	Label   string `json:"label,omitempty"`
	Tag     string `json:"tag,omitempty"` // where the label is not known any more
	Version uint32 `json:"version,omitempty"`
}

// lineJSON is an audit line as JSON.
type lineJSON struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Result   string    `json:"result"`
	Event    string    `json:"event"`
	Why      string    `json:"why,omitempty"`
	Identity string    `json:"identity,omitempty"`
	ID       string    `json:"id,omitempty"`
	Key      string    `json:"key,omitempty"`
	Slot     string    `json:"slot,omitempty"`
	Class    string    `json:"exposure,omitempty"`
	Dest     string    `json:"destination,omitempty"`
	Via      string    `json:"via,omitempty"`
	From     string    `json:"from,omitempty"`
	Labels   []labelOf `json:"labels,omitempty"`
	Number   int       `json:"n,omitempty"`
	Note     string    `json:"note,omitempty"`
}

func jsonLine(l vault.AuditLine) lineJSON {
	out := lineJSON{
		Seq: l.Seq, Time: l.Time.UTC(), Result: resultWord(l.Record), Event: eventWord(l.Event), Why: l.Why, Identity: l.Name,
		Key: l.Key, Slot: l.Slot, Class: l.Class, Dest: l.Dest, Via: l.Via, From: l.From, Number: l.N, Note: l.Note,
	}
	if !l.Identity.IsZero() {
		out.ID = l.Identity.String()
	}
	for i, ref := range l.Record.Labels {
		o := labelOf{Label: l.Labels[i], Version: ref.Version}
		if o.Label == ref.Tag.String() {
			o.Label, o.Tag = "", o.Label
		}
		out.Labels = append(out.Labels, o)
	}
	return out
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

// exportFlags say what export writes.
type exportFlags struct {
	from, to, format string
	sealed           bool
}

func auditExportCommand(a *app) *cobra.Command {
	var f exportFlags
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the log for another program",
		Long: `Export writes lines of the audit log to standard output, the oldest first,
as JSON Lines or CSV. With --sealed labels and names stay hashed, for a log
store that is not trusted; as JSON Lines that is the log itself, chain and
all. --from and --to take a date or an RFC 3339 time; a date in --to counts
whole.`,
		Example: `  solekey audit export --from 2026-11-01 --format csv > nov.csv
  solekey audit export --sealed > log.jsonl`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.auditExport(cmd.Context(), f) },
	}
	fl := c.Flags()
	fl.StringVar(&f.from, "from", "", "leave out lines before this time")
	fl.StringVar(&f.to, "to", "", "leave out lines after this time")
	fl.StringVar(&f.format, "format", "jsonl", "jsonl or csv")
	fl.BoolVar(&f.sealed, "sealed", false, "leave labels and names hashed")
	_ = c.RegisterFlagCompletionFunc("format", words("jsonl", "csv"))
	return c
}

func (a *app) auditExport(ctx context.Context, f exportFlags) error {
	from, err := parseMoment("--from", f.from, false)
	if err != nil {
		return err
	}
	to, err := parseMoment("--to", f.to, true)
	if err != nil {
		return err
	}
	if f.format != "jsonl" && f.format != "csv" {
		return failf(exitUsage, "--format takes jsonl or csv")
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	lines := between(k.Audit(ctx), from, to)
	if f.format == "csv" {
		return exportCSV(a.stdout, lines, f.sealed)
	}
	return exportJSON(a.stdout, lines, f.sealed)
}

// between passes on the lines of a span of time; a zero time is no bound.
func between(lines iter.Seq2[vault.AuditLine, error], from, to time.Time) iter.Seq2[vault.AuditLine, error] {
	return func(yield func(vault.AuditLine, error) bool) {
		for l, err := range lines {
			if err == nil && (l.Time.Before(from) || !to.IsZero() && !l.Time.Before(to)) {
				continue
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// parseMoment reads a date or an RFC 3339 time. The end of a date is the
// beginning of the next day.
func parseMoment(flag, s string, end bool) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		if end {
			t = t.Add(time.Nanosecond)
		}
		return t, nil
	}
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}, failf(exitUsage, "%s takes a date (2026-11-01) or an RFC 3339 time", flag)
	}
	if end {
		t = t.AddDate(0, 0, 1)
	}
	return t, nil
}

func exportJSON(w io.Writer, lines iter.Seq2[vault.AuditLine, error], sealed bool) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for l, err := range lines {
		if err != nil {
			return brokenLog(err, nil)
		}
		if sealed {
			_, err = w.Write(append(slices.Clip(l.Raw), '\n'))
		} else {
			err = enc.Encode(jsonLine(l))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// csvHeader are the columns of an export as CSV.
func csvHeader() []string {
	return []string{"seq", "time", "result", "event", "why", "identity", "id", "key", "slot", "exposure", "destination", "via", "from", "labels", "n", "note"}
}

func exportCSV(w io.Writer, lines iter.Seq2[vault.AuditLine, error], sealed bool) error {
	c := csv.NewWriter(w)
	if err := c.Write(csvHeader()); err != nil {
		return err
	}
	for l, err := range lines {
		if err != nil {
			c.Flush()
			return brokenLog(err, c.Error())
		}
		if err := c.Write(csvLine(l, sealed)); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

func csvLine(l vault.AuditLine, sealed bool) []string {
	j := jsonLine(l)
	var labels []string
	for i, ref := range l.Record.Labels {
		if sealed {
			labels = append(labels, ref.String())
		} else {
			labels = append(labels, fmt.Sprintf("%s v%d", l.Labels[i], ref.Version))
		}
	}
	if sealed {
		j.Identity = ""
	}
	cells := []string{
		strconv.FormatUint(j.Seq, 10), j.Time.Format(time.RFC3339Nano), j.Result, j.Event, j.Why, j.Identity, j.ID, j.Key, j.Slot,
		j.Class, j.Dest, j.Via, j.From, strings.Join(labels, " "), strconv.Itoa(j.Number), j.Note,
	}
	for i := range cells {
		cells[i] = inert(cells[i])
	}
	return cells
}

// inert keeps a spreadsheet from taking a cell for a formula.
func inert(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n|", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}

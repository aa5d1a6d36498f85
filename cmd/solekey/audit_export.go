package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

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

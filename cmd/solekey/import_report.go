package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What import says: one table over all files and vaults, or one JSON object.
// Neither holds a value, its length or a hash of it.

// importTotals are the counts of a report.
type importTotals struct{ taken, skipped int }

// report prints the table and what it comes to. done is nil for a dry run.
func (j *importJob) report(done []touched) error {
	a := j.app
	rows, totals := j.rows()
	j.warnings()
	if a.conf.asJSON {
		return a.writeJSON(j.json(rows, totals, done))
	}
	if a.conf.quiet && !j.flags.dryRun {
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		at := strconv.Itoa(r.Line)
		if len(j.sources) > 1 {
			at = r.File + ":" + at
		}
		host := strings.Join(r.Hosts, ",")
		cells = append(cells, []string{at, dash(r.Label), dash(r.Kind), r.Action, dash(host), r.Note})
	}
	a.table([]string{">LINE", "LABEL", "KIND", "ACTION", "HOST", "NOTE"}, cells)
	fmt.Fprintln(a.stdout, j.summary(totals))
	for _, t := range done {
		t.print(a)
	}
	return nil
}

// warnings names what a person should look at, also where no table is shown.
func (j *importJob) warnings() {
	for i := range j.plan {
		if v := &j.plan[i]; v.take && v.warn {
			j.app.warn("%s:%d: %s: %s", j.sources[v.source].name, v.line, v.label, strings.Join(v.notes, "; "))
		}
	}
}

func (j *importJob) summary(t importTotals) string {
	s := fmt.Sprintf("%d to import, %d skipped.", t.taken, t.skipped)
	if !j.flags.dryRun {
		into := "into " + j.shares[0].info.Name
		if n := len(j.shares); n > 1 {
			into = fmt.Sprintf("into %d vaults (%s)", n, j.names(j.shares))
		}
		s = fmt.Sprintf("%d imported %s, %d skipped.", t.taken, into, t.skipped)
	}
	for _, src := range j.sources {
		if src.vcs > 0 {
			s += fmt.Sprintf("  %s is in %s of this git repository: rotate what it holds", src.name, count(src.vcs, "commit"))
		}
	}
	return s
}

// importRow is one line of the table. Its fields never hold a value.
type importRow struct {
	File   string   `json:"file"`
	Line   int      `json:"line"`
	Label  string   `json:"label,omitempty"`
	Kind   string   `json:"kind,omitempty"`
	Action string   `json:"action"`
	Hosts  []string `json:"hosts,omitempty"`
	Note   string   `json:"note,omitempty"`
}

// rows are the assignments, and the lines that are none, in the order of the
// files.
func (j *importJob) rows() ([]importRow, importTotals) {
	var out []importRow
	var t importTotals
	for i, src := range j.sources {
		start := len(out)
		for n := range j.plan {
			if v := &j.plan[n]; v.source == i {
				r := j.row(v)
				out = append(out, r)
				if r.Action == "import" {
					t.taken++
				} else {
					t.skipped++
				}
			}
		}
		for _, l := range src.file.Others() {
			out = append(out, importRow{File: src.name, Line: l.Number, Action: "skip", Note: l.Reason})
		}
		slices.SortStableFunc(out[start:], func(x, y importRow) int { return x.Line - y.Line })
	}
	return out, t
}

func (j *importJob) row(v *variable) importRow {
	r := importRow{File: j.sources[v.source].name, Line: v.line, Label: string(v.label), Action: "skip"}
	if v.label == "" {
		r.Label = brief(j.flags.prefix + v.name)
	}
	if v.secret {
		r.Kind = v.kind.String()
	}
	notes := v.notes
	if v.take {
		stored, note := j.outcome(v)
		if stored {
			r.Action, r.Hosts = "import", v.hosts
		} else {
			notes = nil
		}
		if note != "" {
			notes = append([]string{note}, notes...)
		}
	}
	r.Note = strings.Join(notes, "; ")
	return r
}

// outcome says whether a taken variable goes into any vault, and what is to
// be known about the vaults that have its label.
func (j *importJob) outcome(v *variable) (stored bool, note string) {
	var words []string
	for _, s := range j.shares {
		puts, word := j.puts(s, v), ""
		stored = stored || puts
		switch before := s.before[v.label]; {
		case before == absent:
		case !puts:
			word = before.String()
		case s.version[v.label] > 0:
			word = fmt.Sprintf("version %d", s.version[v.label])
		default:
			word = "one more version"
		}
		if word == "" {
			continue
		}
		if len(j.shares) > 1 {
			word += " in " + s.info.Name
		}
		words = append(words, word)
	}
	return stored, strings.Join(words, ", ")
}

func (j *importJob) json(rows []importRow, t importTotals, done []touched) any {
	type file struct {
		File      string `json:"file"`
		Open      bool   `json:"readable_by_others,omitempty"`
		Commits   int    `json:"git_commits,omitempty"`
		Rewritten bool   `json:"rewritten,omitempty"`
		Shredded  bool   `json:"shredded,omitempty"`
	}
	out := struct {
		DryRun     bool        `json:"dry_run"`
		Identities []string    `json:"identities"`
		Files      []file      `json:"files"`
		Entries    []importRow `json:"entries"`
		Count      int         `json:"count"`
		Imported   int         `json:"imported"`
		Skipped    int         `json:"skipped"`
	}{DryRun: j.flags.dryRun, Entries: slices.Concat([]importRow{}, rows), Count: len(rows), Imported: t.taken, Skipped: t.skipped}
	for _, s := range j.shares {
		out.Identities = append(out.Identities, s.info.Name)
	}
	for i, src := range j.sources {
		f := file{File: src.name, Open: src.open, Commits: src.vcs}
		for _, t := range done {
			if t.source == i {
				f.Rewritten, f.Shredded = t.rewritten, t.shredded
			}
		}
		out.Files = append(out.Files, f)
	}
	return out
}

package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/audit"
)

// A line of the log as people and programs see it. Its texts come from
// outside, and reach the terminal as plain ASCII only.

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
	case l.Identity.IsZero() && (l.Event == audit.Backup || l.Event == audit.Restore):
		words = append(words, "backup "+ascii(l.Note[:min(8, len(l.Note))]))
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

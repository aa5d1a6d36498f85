package main

import (
	"fmt"

	"github.com/solekey/solekey/vault"
)

// repairResult is what a repair says with --json.
type repairResult struct {
	Store      string         `json:"store"`
	StoreID    string         `json:"store_id"`
	Backup     string         `json:"backup"`
	Aside      string         `json:"aside,omitempty"` // where the damaged store is
	InPlace    bool           `json:"in_place"`
	Identities int            `json:"identities"`
	Kept       int            `json:"kept"`
	FromBackup []repairedPart `json:"from_backup"`
	CellsFrom  []repairedPart `json:"cells_from_backup"`
	Older      []repairedPart `json:"rolled_back"` // the store was, and the backup has nothing newer
	Refused    []refusedSince `json:"refused"`
	Damaged    []repairedPart `json:"damaged"`
	Lost       []string       `json:"lost"`
	LinesLeft  int            `json:"audit_records_left_out"`
	LogHealed  bool           `json:"log_healed"`
	LogAnew    bool           `json:"log_begins_anew"`
	LogUnknown bool           `json:"log_end_unknown"`
}

// repairedPart is an identity that is not as it was.
type repairedPart struct {
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Why   string `json:"why"`
	Later int    `json:"later_changes_lost,omitempty"`
}

func (r *repair) result(m *vault.Mended) repairResult {
	out := repairResult{
		Store: r.site.dir, StoreID: r.ar.Info().Store.String(), Backup: r.ar.Info().ID, InPlace: r.f.into == "", Identities: len(m.Plan.Identities),
		FromBackup: []repairedPart{}, CellsFrom: []repairedPart{}, Older: []repairedPart{}, Refused: refusedBy(m.Plan), Damaged: []repairedPart{}, Lost: lostIn(m.Plan),
		LinesLeft: m.Left, LogHealed: m.Healed, LogAnew: m.Headless, LogUnknown: m.Blind,
	}
	if out.InPlace {
		out.Aside = r.site.aside
	} else {
		out.Store = r.site.work
	}
	for _, i := range m.Plan.Identities {
		p := m.Parts[i.ID]
		part := repairedPart{ID: i.ID.String(), Name: i.Name, Why: p.Why, Later: p.Later}
		switch {
		case i.Damaged:
			out.Damaged = append(out.Damaged, part)
		case p.Origin == vault.FromBackup:
			out.FromBackup = append(out.FromBackup, part)
		case p.Origin == vault.FromStoreCell:
			out.CellsFrom = append(out.CellsFrom, part)
		case p.Later > 0:
			out.Older = append(out.Older, part)
		case i.Since == vault.SinceNothing:
			out.Kept++
		}
	}
	return out
}

// unchanged says with --json that the store stays as it is.
func (r *repair) unchanged(m *vault.Mended) error {
	if !r.app.conf.asJSON {
		return nil
	}
	out := r.result(m)
	out.Store, out.Aside, out.InPlace = r.site.dir, "", false
	return r.app.writeJSON(out)
}

// report says what was made, and what is left to do.
func (r *repair) report(m *vault.Mended) error {
	a, out := r.app, r.result(m)
	if a.conf.asJSON {
		if err := a.writeJSON(out); err != nil {
			return err
		}
	}
	if out.InPlace {
		a.row("repaired", "", fmt.Sprintf("%s with %s; servers that run meet it at their next call", tilde(out.Store), count(out.Identities, "identity")))
		a.warn("%s is the store as it was, with its shred keys: what is shredded from now on still opens there until you delete it", tilde(out.Aside))
		a.say("next: solekey audit verify, then solekey doctor")
	} else {
		a.row("repaired", "", fmt.Sprintf("%s into %s; %s is as it was", count(out.Identities, "identity"), tilde(out.Store), tilde(r.site.dir)))
		a.say("next: stop every solekey serve and mcp of this store; what they change meanwhile is not in the repaired one. Then:")
		a.say("  %s", exchange(r.site.dir, r.site.aside, out.Store))
		a.say("  solekey audit verify, then solekey doctor, then start them again")
	}
	if m.Headless || m.Left > 0 {
		a.warn("the lines of the log that were not taken over are in %s only: keep its audit*.jsonl", tilde(r.damaged()))
	}
	if len(out.Damaged)+len(out.Lost) > 0 {
		return reported{exit: exitFindings}
	}
	return nil
}

package main

import (
	"fmt"
	"strings"

	"github.com/solekey/solekey/vault"
)

// restoreResult is what restore says with --json.
type restoreResult struct {
	Store      string         `json:"store"`
	StoreID    string         `json:"store_id"`
	Backup     string         `json:"backup"`
	Identities int            `json:"identities"`
	Records    int            `json:"records"`
	Refused    []refusedSince `json:"refused"`
	Lost       []string       `json:"lost"`
	Damaged    int            `json:"damaged"`
	Ledger     bool           `json:"ledger"`
	NewerLines int            `json:"newer_records,omitempty"`
	KnownUntil string         `json:"known_until"` // what was closed after it lives again
}

// refusedSince is an identity of which less lives than the backup holds.
type refusedSince struct {
	ID    string   `json:"id"`
	Name  string   `json:"name,omitempty"`
	Since string   `json:"since"` // closed, revoked or shredded
	Keys  []string `json:"keys,omitempty"`
}

// closedKeys names the keys that a plan closes of an identity.
func closedKeys(i vault.Planned) (keys []string) {
	for _, s := range i.Closed {
		keys = append(keys, s.String())
	}
	return keys
}

// refusedBy lists what a plan closes, and lostIn what it cannot bring back;
// both are never null in JSON.
func refusedBy(p *vault.Plan) []refusedSince {
	out := []refusedSince{}
	for _, i := range p.Identities {
		if i.Since != vault.SinceNothing {
			out = append(out, refusedSince{ID: i.ID.String(), Name: i.Name, Since: i.Since.String(), Keys: closedKeys(i)})
		}
	}
	return out
}

func lostIn(p *vault.Plan) []string {
	out := []string{}
	for _, id := range p.Lost {
		out = append(out, id.String())
	}
	return out
}

func (a *app) restored(dir string, ar *vault.Archive, p *vault.Plan) error {
	out := restoreResult{
		Store: dir, StoreID: ar.Info().Store.String(), Backup: ar.Info().ID, Identities: len(p.Identities),
		Refused: refusedBy(p), Lost: lostIn(p), Damaged: damaged(p), Ledger: p.Newer >= 0, NewerLines: max(p.Newer, 0), KnownUntil: at(p.Known),
	}
	for _, i := range p.Identities {
		out.Records += i.Records
	}
	if a.conf.asJSON {
		return a.writeJSON(out)
	}
	a.printRestored(out, p)
	return nil
}

func (a *app) printRestored(out restoreResult, p *vault.Plan) {
	a.row("restored", "", fmt.Sprintf("%s with %s into %s", count(out.Identities, "identity"), count(out.Records, "record"), tilde(out.Store)))
	if out.Ledger {
		a.row("ledger", "", fmt.Sprintf("%s after the backup, the last of %s: what was closed later lives again", records(out.NewerLines), stamp(p.Known)))
	}
	for _, i := range p.Identities {
		switch i.Since {
		case vault.SinceKeys:
			a.row("closed", "", fmt.Sprintf("%s: key %s, revoked or replaced after this backup", nameOf(i), strings.Join(closedKeys(i), ", ")))
		case vault.SinceRevoked, vault.SinceShredded:
			a.row("refused", "", fmt.Sprintf("%s: %s after this backup", nameOf(i), i.Since))
		}
		if i.Damaged {
			a.warn("%s does not open: it was damaged when the backup was made, or its cell is erased", nameOf(i))
		}
	}
	for _, id := range p.Lost {
		a.row("lost", "", id.String()[:8]+": made after this backup")
	}
	a.say("next: solekey audit verify, then solekey doctor; agents keep their keys")
}

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/solekey/solekey/vault"
)

// verifyResult is what restore --verify says with --json.
type verifyResult struct {
	OK          bool   `json:"ok"`
	Backup      string `json:"backup"`
	StoreID     string `json:"store_id"`
	Fingerprint string `json:"fingerprint"`
	Created     string `json:"created"`
	Bytes       int64  `json:"bytes"`
	Identities  int    `json:"identities"`
	Records     int    `json:"records"`
	Lines       int    `json:"audit_records"`
	Head        string `json:"head"`
	Proven      string `json:"proven_by"` // recovery_key, root_key or nothing
	Damaged     int    `json:"damaged"`
}

// verifyBackup checks a file as far as what is at hand allows: with the
// recovery key, or the root and cells, down to every record.
func (a *app) verifyBackup(ctx context.Context, path string, ar *vault.Archive, f restoreFlags) error {
	in := ar.Info()
	out := verifyResult{
		Backup: in.ID, StoreID: in.Store.String(), Fingerprint: in.Fingerprint.String(), Created: at(in.Created), Bytes: in.Bytes,
		Identities: in.Identities, Records: in.Records, Lines: in.Lines, Head: hex.EncodeToString(in.Head[:]), Proven: "nothing",
	}
	have, err := a.rootHere(in.Store)
	if err != nil {
		return err
	}
	if !have.IsZero() {
		if !ar.SignedBy(have) {
			return a.faulty(path, vault.FaultForged, f.verify)
		}
		out.Proven = "root_key"
	}
	if f.recovery.given() || f.cells != "" {
		done, err := a.openArchive(ctx, ar, f)
		if fault, ok := errors.AsType[vault.Fault](err); ok {
			return a.faulty(path, fault, f.verify)
		}
		if err != nil {
			return err
		}
		defer done()
		p, err := a.plan(ctx, ar, f)
		if err != nil {
			return err
		}
		out.Damaged = damaged(p)
		if f.recovery.given() {
			out.Proven = "recovery_key"
		}
	}
	out.OK = out.Damaged == 0 && in.LogBroken == 0
	return a.verifyDone(out, in)
}

func (a *app) verifyDone(out verifyResult, in vault.ArchiveInfo) error {
	if a.conf.asJSON {
		if err := a.writeJSON(out); err != nil {
			return err
		}
	}
	holds := fmt.Sprintf("%s, %s, %s, %s", size(out.Bytes), count(out.Identities, "identity"), count(out.Records, "record"), count(out.Lines, "audit line"))
	word := map[bool]string{true: "ok", false: "fail"}[out.OK]
	a.row(word, "", holds+"; whole, in order, made "+out.Created+" by store "+out.StoreID[:8])
	if out.Damaged > 0 {
		a.row("fail", "", countIs(out.Damaged, "identity")+" damaged: so they were when the backup was made")
	}
	if in.LogBroken > 0 {
		a.row("fail", "", fmt.Sprintf("the audit log does not continue at line %d: so it was when the backup was made", in.LogBroken))
	}
	switch out.Proven {
	case "nothing":
		a.warn("that this store is yours is not proven: its root key is not on this machine; --recovery-key-file proves it")
	case "root_key":
		a.row("ok", "", "signed by the store of this machine")
	default:
		a.row("ok", "", "signed by the store of this recovery key, and every record belongs to its vault")
	}
	if !out.OK {
		return reported{exit: exitFindings}
	}
	return nil
}

func damaged(p *vault.Plan) (n int) {
	for _, i := range p.Identities {
		if i.Damaged {
			n++
		}
	}
	return n
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// AuditLine is one line of the log with names for people beside it.
type AuditLine struct {
	audit.Record
	Name   string   // of the identity; empty if it is shredded or there is none
	Labels []string // in the order of Record.Labels; the tag where no label is known
	Raw    []byte   // the line as it stands in the log, without its LF
}

// Audit yields the log, the oldest line first, with identities and labels by
// name where they can still be read. A line that is no record ends the
// sequence.
func (k *Keeper) Audit(ctx context.Context) iter.Seq2[AuditLine, error] {
	return func(yield func(AuditLine, error) bool) {
		names := make(map[identity.ID]*nameTable)
		n := 0
		for raw, err := range k.backend.Lines(ctx) {
			n++
			line := AuditLine{Raw: raw}
			if err == nil {
				if line.Record, err = audit.Parse(raw); err != nil {
					err = fmt.Errorf("audit log, line %d: %w", n, err)
				}
			}
			if err != nil {
				yield(AuditLine{}, err)
				return
			}
			k.nameLine(ctx, names, &line)
			if !yield(line, nil) {
				return
			}
		}
	}
}

// nameTable turns the tags of one identity back into labels.
type nameTable struct {
	name   string
	labels map[audit.Tag]string
}

func (k *Keeper) nameLine(ctx context.Context, names map[identity.ID]*nameTable, line *AuditLine) {
	if line.Identity.IsZero() {
		return
	}
	t, ok := names[line.Identity]
	if !ok {
		t = k.nameTable(ctx, line.Identity)
		names[line.Identity] = t
	}
	line.Name = t.name
	for _, ref := range line.Record.Labels {
		label, ok := t.labels[ref.Tag]
		if !ok {
			label = ref.Tag.String()
		}
		line.Labels = append(line.Labels, label)
	}
}

// nameTable is empty for an identity that cannot be read: its lines are shown
// by tag.
func (k *Keeper) nameTable(ctx context.Context, id identity.ID) *nameTable {
	t := &nameTable{labels: make(map[audit.Tag]string)}
	w, es, err := k.listing(ctx, id)
	if err != nil || w.rev == 0 || w.head == nil {
		return t
	}
	defer w.wipe()
	t.name = w.head.Name
	for _, e := range es {
		t.labels[w.tag(Label(e.Label))] = e.Label
	}
	return t
}

// lineage follows the changes of one identity through the log.
type lineage struct {
	hashes  map[audit.Hash]int // mh of every change, by position
	was     []audit.Hash
	lines   []int
	maxRead uint64
	shred   bool
}

// VerifyAudit verifies the log and compares it with the store: the genesis
// line with the store record, and the last change of every identity with its
// header. It changes nothing.
func (k *Keeper) VerifyAudit(ctx context.Context) (audit.Report, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return audit.Report{}, err
	}
	seen := make(map[identity.ID]*lineage)
	born := ""
	rep, err := audit.Verify(ctx, k.backend, func(line int, r audit.Record) {
		if r.Event == audit.Genesis {
			born = r.Note
		}
		follow(seen, line, r)
	})
	if err != nil {
		return rep, err
	}
	if want := genesis(st.Store, st.record.RecoveryPK, k.now()).Note; born != want {
		rep.Add(1, "was written for another store, or for another recovery key")
	}
	return rep, k.compare(ctx, &rep, seen)
}

func follow(seen map[identity.ID]*lineage, line int, r audit.Record) {
	if r.Identity.IsZero() || r.Denied {
		return
	}
	l := seen[r.Identity]
	if l == nil {
		l = &lineage{hashes: make(map[audit.Hash]int)}
		seen[r.Identity] = l
	}
	if r.Event == audit.Shred {
		l.shred = true
	}
	if r.Is == (audit.Hash{}) {
		l.maxRead = max(l.maxRead, r.Gen)
		return
	}
	if _, again := l.hashes[r.Is]; again {
		return // one change, several lines
	}
	l.hashes[r.Is] = len(l.was)
	l.was = append(l.was, r.Was)
	l.lines = append(l.lines, line)
}

// compare finds identities whose header is not the one that the log ends in.
func (k *Keeper) compare(ctx context.Context, rep *audit.Report, seen map[identity.ID]*lineage) error {
	var after identity.ID
	found := make(map[identity.ID]bool)
	for {
		page, err := k.backend.Identities(ctx, after, pageSize)
		if err != nil {
			return fmt.Errorf("listing identities: %w", err)
		}
		for _, it := range page {
			after = it.ID
			found[it.ID] = true
			k.compareOne(ctx, rep, it, seen[it.ID])
		}
		if len(page) < pageSize {
			break
		}
	}
	for id, l := range seen {
		if !found[id] && len(l.lines) > 1 {
			rep.Add(l.lines[len(l.lines)-1], "changes identity %s, which is not in the store: the store was rolled back", id)
		}
	}
	return nil
}

func (k *Keeper) compareOne(ctx context.Context, rep *audit.Report, it storage.Ident, l *lineage) {
	if l == nil {
		rep.Add(0, "identity %s is in the store, but no line tells of it", it.ID)
		return
	}
	if typ, _, err := seal.Peek(it.Meta); err == nil && typ == seal.TypeTombstone {
		if !l.shred {
			k.owedOr(ctx, rep, it.ID, "identity %s is shredded, but no line tells of it", it.ID)
		}
		return
	}
	at, ok := l.hashes[metaHash(it.Meta)]
	if !ok {
		k.owedOr(ctx, rep, it.ID, "the last change of identity %s has no line", it.ID)
		return
	}
	for later := at + 1; later < len(l.was); later++ {
		if i, ok := l.hashes[l.was[later]]; ok && i > at {
			rep.Add(l.lines[later], "changes identity %s from a state that the store no longer has: the store was rolled back", it.ID)
			return
		}
	}
	w, err := k.load(ctx, it.ID)
	if errors.Is(err, storage.ErrDamaged) {
		rep.Add(0, "identity %s does not open: solekey doctor", it.ID)
		return
	}
	if err == nil && w.head != nil && l.maxRead > w.head.Gen {
		rep.Add(0, "identity %s was read at generation %d, the store has %d: the store was rolled back", it.ID, l.maxRead, w.head.Gen)
	}
	w.wipe()
}

// owedOr reports a change without a line, unless the header owes the line.
func (k *Keeper) owedOr(ctx context.Context, rep *audit.Report, id identity.ID, format string, args ...any) {
	w, err := k.load(ctx, id)
	if err == nil {
		defer w.wipe()
		owes := w.head != nil && w.head.Flags&seal.FlagAuditOwed != 0 || w.tomb != nil && w.tomb.AuditOwed
		if owes {
			return
		}
	}
	rep.Add(0, format, args...)
}

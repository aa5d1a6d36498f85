package vault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

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
	w, es, err := k.listing(ctx, id, nil)
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

// lineage is what the log says of one identity.
type lineage struct {
	changes []logged
	byHash  map[audit.Hash]int // of changes, by the hash of the header they make
	reads   []logged           // the first attempt, refused or not, that read each generation of the header
	gens    map[uint64]bool    // the generations of reads
	lines   int                // how many lines changed or read the header
	last    int                // the last of them
	owed    map[int]bool       // lines that pay for a change whose own could not be written
	shred   bool
}

type logged struct {
	line    int
	event   audit.Event
	gen     uint64
	was, is audit.Hash
	late    bool // written after the headers were read
}

// maxVerify is how often a verification that found the store and the log
// apart is repeated: beside writers, a line may be there and its commit not
// yet.
const maxVerify = 3

// Outside is what the owner knows of the log from elsewhere. The zero value
// expects a whole log.
type Outside struct {
	From        uint64 // number of the first line that is there; [audit.AnyFirst]: any that begins a file
	Checkpoints []byte // checkpoints that were kept, one behind the other; nil: none
}

// VerifyAudit verifies the log and compares it with the store: the genesis
// line with the store record, and the history of every identity with its
// header and records. It changes nothing.
func (k *Keeper) VerifyAudit(ctx context.Context) (audit.Report, error) {
	return k.VerifyAuditAgainst(ctx, Outside{})
}

// VerifyAuditAgainst is VerifyAudit of a log of which something is known from
// elsewhere. A checkpoint that was kept there shows that the whole data
// directory was rolled back, or the log rewritten with its mark.
func (k *Keeper) VerifyAuditAgainst(ctx context.Context, o Outside) (audit.Report, error) {
	for try := 1; ; try++ {
		rep, apart, err := k.verifyOnce(ctx, o)
		if err != nil || !apart || try == maxVerify {
			return rep, err
		}
	}
}

func (k *Keeper) verifyOnce(ctx context.Context, o Outside) (rep audit.Report, apart bool, err error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return audit.Report{}, false, err
	}
	out := audit.Outside{From: o.From}
	var forged error
	if o.Checkpoints != nil {
		out.Checkpoints, forged = audit.ParseCheckpoints(o.Checkpoints, st.Fingerprint(st.record.RecoveryPK), st.AuditPublic())
	}
	seen := make(map[identity.ID]*lineage)
	born := ""
	var broken, headless []int // restores whose older log was
	rep, err = audit.VerifyAgainst(ctx, k.backend, out, func(line int, r audit.Record) {
		if r.Event == audit.Genesis {
			born = r.Note
		}
		if n, ok := parseRebirth(st.Store, r); ok {
			clear(seen) // the store began anew; its identities have lines of their own
			switch {
			case n.broken > uint64(line):
				headless = append(headless, line)
			case n.broken > 0:
				broken = append(broken, line)
			}
		}
		follow(seen, line, r, false)
	})
	if err != nil {
		return rep, false, err
	}
	if forged != nil {
		rep.Add(0, "%v", forged)
	}
	if want := genesis(st.Store, st.record.RecoveryPK, k.now()).Note; born != want && (rep.First == 0 || born != "") {
		rep.Add(1, "was written for another store, or for another recovery key")
	}
	for _, line := range broken {
		rep.Add(line, "is a restore whose log was broken: its lines from there on are in the backup, or in the directory that a repair put aside")
	}
	for _, line := range headless {
		rep.Say(line, "is a restore of a log whose earlier files had been moved away: what was left of it is in the backup, or in the directory that a repair put aside")
	}
	metas, err := k.metas(ctx)
	if err != nil {
		return rep, false, err
	}
	problems, notes := len(rep.Problems), len(rep.Notes)
	k.compare(ctx, &rep, metas, seen)
	if len(rep.Problems) == problems {
		return rep, false, nil
	}
	if err := k.followLate(ctx, seen, int(rep.First), rep.Lines); err != nil {
		return rep, false, err
	}
	rep.Problems, rep.Notes = rep.Problems[:problems], rep.Notes[:notes]
	k.compare(ctx, &rep, metas, seen)
	return rep, len(rep.Problems) > problems, nil
}

// followLate adds the lines that were written since the log was read, so that
// every header that was read meanwhile finds its line.
func (k *Keeper) followLate(ctx context.Context, seen map[identity.ID]*lineage, first, count int) error {
	n := 0
	for raw, err := range k.backend.Lines(ctx) {
		if err != nil {
			return err
		}
		if n++; n <= count {
			continue
		}
		if r, err := audit.Parse(raw); err == nil {
			follow(seen, first+n, r, true)
		}
	}
	return nil
}

func follow(seen map[identity.ID]*lineage, line int, r audit.Record, late bool) {
	if r.Identity.IsZero() {
		return
	}
	l := seen[r.Identity]
	if l == nil {
		l = &lineage{byHash: make(map[audit.Hash]int), owed: make(map[int]bool), gens: make(map[uint64]bool)}
		seen[r.Identity] = l
	}
	at := logged{line: line, event: r.Event, gen: r.Gen, was: r.Was, is: r.Is, late: late}
	if !r.Denied && (r.Event == audit.Shred || r.Event == audit.Restore && r.Note == noteShredded) {
		l.shred = true
	}
	if r.Note == noteOwed {
		l.owed[line] = true
		return
	}
	if r.Is == (audit.Hash{}) {
		if r.Gen > 0 {
			l.lines, l.last = l.lines+1, line
		}
		if r.Gen > 0 && !l.gens[r.Gen] { // the earliest line is the one that shows a roll-back
			l.gens[r.Gen] = true
			l.reads = append(l.reads, at)
		}
		return
	}
	if _, again := l.byHash[r.Is]; again {
		return // one change, several lines
	}
	l.lines, l.last = l.lines+1, line
	l.byHash[r.Is] = len(l.changes)
	l.changes = append(l.changes, at)
}

// metas reads the header of every identity as it is sealed.
func (k *Keeper) metas(ctx context.Context) ([]storage.Ident, error) {
	var out []storage.Ident
	var after identity.ID
	for {
		page, err := k.backend.Identities(ctx, after, pageSize)
		if err != nil {
			return nil, fmt.Errorf("listing identities: %w", err)
		}
		out = append(out, page...)
		if len(page) < pageSize {
			return out, nil
		}
		after = page[len(page)-1].ID
	}
}

func (k *Keeper) compare(ctx context.Context, rep *audit.Report, metas []storage.Ident, seen map[identity.ID]*lineage) {
	found := make(map[identity.ID]bool, len(metas))
	for _, it := range metas {
		found[it.ID] = true
		k.compareOne(ctx, rep, it, seen[it.ID])
	}
	for _, id := range slices.SortedFunc(maps.Keys(seen), func(a, b identity.ID) int { return bytes.Compare(a[:], b[:]) }) {
		if found[id] {
			continue
		}
		l := seen[id]
		if l.lines > 1 {
			rep.Add(l.last, "tells of identity %s, which is not in the store: the store was rolled back", id)
		} else {
			l.sayUnapplied(rep, id, nil)
		}
	}
}

func (k *Keeper) compareOne(ctx context.Context, rep *audit.Report, it storage.Ident, l *lineage) {
	partial := rep.First > 0
	if l == nil {
		if !partial {
			rep.Add(0, "identity %s is in the store, but no line tells of it", it.ID)
		}
		return
	}
	if typ, _, err := seal.Peek(it.Meta); err == nil && typ == seal.TypeTombstone {
		if !l.shred && !partial {
			k.owedOr(ctx, rep, it.ID, "identity %s is shredded, but no line tells of it", it.ID)
		}
		return
	}
	at, ok := l.byHash[metaHash(it.Meta)]
	older := !ok && partial && l.unmoved(metaHash(it.Meta))
	if !ok && !older {
		k.owedOr(ctx, rep, it.ID, "the last change of identity %s has no line", it.ID)
		return
	}
	var applied map[int]bool
	if !older {
		var p string
		if p, applied = l.apart(at, partial); p != "" {
			rep.Add(0, "identity %s: %s", it.ID, p)
			return
		}
	}
	l.sayUnapplied(rep, it.ID, applied)
	w, err := k.load(ctx, it.ID)
	if err == nil && w.head != nil {
		if line := l.readsAfter(w.head.Gen); older && line > 0 {
			rep.Add(0, "identity %s: line %d read a generation that the store does not have: the store was rolled back", it.ID, line)
		}
		_, _, err = k.setMatches(ctx, w, nil)
	}
	if errors.Is(err, storage.ErrDamaged) {
		rep.Add(0, "identity %s does not open, or its records are not those that were written: solekey doctor", it.ID)
	}
	w.wipe()
}

// unmoved reports whether a header may be older than every line that is here:
// no line changes the identity, or all of them were to change this header.
func (l *lineage) unmoved(header audit.Hash) bool {
	for _, c := range l.changes {
		if c.was != header || l.closes(c) {
			return false
		}
	}
	return true
}

// readsAfter returns a line that read a later generation than gen, or 0.
func (l *lineage) readsAfter(gen uint64) int {
	for _, r := range l.reads {
		if r.gen > gen && !r.late {
			return r.line
		}
	}
	return 0
}

// sayUnapplied notes the changes that a line announces and the store does not
// have: their commit was cut off or met another one.
func (l *lineage) sayUnapplied(rep *audit.Report, id identity.ID, applied map[int]bool) {
	for i, c := range l.changes {
		if !applied[i] && !c.late {
			rep.Say(c.line, "announces a change of identity %s (%s) that was not applied", id, c.event)
		}
	}
}

// apart says how the log contradicts a store whose header is that of change
// at, or "", and which changes were applied. A line is written before its
// commit, so a change that a line tells of may have been cut off; what is on
// the way from the header back to the creation was applied. Of a partial log
// the creation may be missing.
func (l *lineage) apart(at int, partial bool) (problem string, applied map[int]bool) {
	applied = make(map[int]bool)
	first := at
	for i, ok := at, true; ok && !applied[i]; i, ok = l.before(i) {
		applied[i] = true
		first = i
	}
	if l.owed[l.changes[first].line-1] { // it explains the gap before this change
		for i := range first {
			applied[i] = true
		}
	}
	if !applied[0] && (!partial || l.changes[0].event == audit.Create) { // the walk ended at another line than the first
		return fmt.Sprintf("line %d does not follow from its creation: lines are missing", l.changes[at].line), applied
	}
	for i, c := range l.changes {
		if c.late {
			continue
		}
		if from, ok := l.byHash[c.was]; ok && !applied[from] {
			return fmt.Sprintf("line %d changes it from a state that the store no longer has: the store was rolled back", c.line), applied
		}
		if !applied[i] && l.closes(c) && !l.closedLater(c, applied) {
			return fmt.Sprintf("line %d closes keys, but the store does not know of it: the command was cut off, or the store was rolled back; repeat it", c.line), applied
		}
	}
	return l.readAhead(at, applied), applied
}

// before returns the change that made the state which change i replaced.
func (l *lineage) before(i int) (int, bool) {
	j, ok := l.byHash[l.changes[i].was]
	return j, ok
}

func (l *lineage) closes(c logged) bool { return closesKeys(c.event) }

// closesKeys reports whether a change of this kind closes keys. A restore
// carries such changes out again when they are younger than its backup.
func closesKeys(e audit.Event) bool {
	switch e {
	case audit.Revoke, audit.KeyRevoke, audit.Rotate, audit.Shred:
		return true
	}
	return false
}

// closedLater reports whether the change was made again, as a conflict makes
// it, and applied.
func (l *lineage) closedLater(c logged, applied map[int]bool) bool {
	for i, d := range l.changes {
		if d.line > c.line && d.event == c.event && applied[i] {
			return true
		}
	}
	return false
}

// readAhead looks for an attempt that read a generation before the line of
// the change which made that generation: the state it read is gone.
func (l *lineage) readAhead(at int, applied map[int]bool) string {
	made := make(map[uint64]int, len(applied)) // line by generation
	for i := range applied {
		made[l.changes[i].gen] = l.changes[i].line
	}
	for _, r := range l.reads {
		if r.late {
			continue
		}
		if r.gen > l.changes[at].gen && !l.changes[at].late {
			return fmt.Sprintf("line %d read generation %d, the store has %d: the store was rolled back", r.line, r.gen, l.changes[at].gen)
		}
		if line := made[r.gen]; line > r.line {
			return fmt.Sprintf("line %d read generation %d before line %d made it: the store was rolled back", r.line, r.gen, line)
		}
	}
	return ""
}

// owedOr reports a change without a line, unless the header owes the line.
func (k *Keeper) owedOr(ctx context.Context, rep *audit.Report, id identity.ID, format string, args ...any) {
	w, err := k.load(ctx, id)
	if err == nil {
		defer w.wipe()
		if w.owes() {
			return
		}
	}
	rep.Add(0, format, args...)
}

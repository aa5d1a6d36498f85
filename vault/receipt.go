package vault

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

const receiptFormat = "solekey/v1"

// Receipt is the signed list of what closed keys were given. It names labels:
// treat it as internal. Each label is counted once, in the worst class:
// revealed, then codes, then untouched.
type Receipt struct {
	Format      string          `json:"receipt"`
	ID          string          `json:"id"`
	Store       string          `json:"store"`
	Identity    ReceiptIdentity `json:"identity"`
	Keys        []string        `json:"keys"`
	Action      string          `json:"action"` // revoke, shred or key-revoke
	Reason      string          `json:"reason,omitempty"`
	EffectiveAt time.Time       `json:"effective_at"`
	Erasure     string          `json:"erasure"` // in_place, best_effort, delayed or none
	// Recoverable says that the recovery key can bring the identity back, Heir
	// which identity took over its values.
	Recoverable bool           `json:"recoverable,omitempty"`
	Heir        string         `json:"heir,omitempty"`
	Counts      ReceiptCounts  `json:"counts"`
	Revealed    []ReceiptLabel `json:"revealed"`
	Codes       []ReceiptLabel `json:"codes"`
	Audit       ReceiptAudit   `json:"audit"`
	Signature   *Signature     `json:"signature,omitempty"`
}

// ReceiptIdentity names the identity of a receipt.
type ReceiptIdentity struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

// ReceiptCounts counts labels by class, and the refused attempts.
type ReceiptCounts struct {
	Labels    int `json:"labels"`
	Revealed  int `json:"revealed"`
	Codes     int `json:"codes"`
	Untouched int `json:"untouched"`
	Denied    int `json:"denied"`
}

// ReceiptLabel is one label that was given out. Current says that no newer
// version was put since: the value must be rotated at its provider.
type ReceiptLabel struct {
	Label     string    `json:"label"`
	Version   uint32    `json:"version,omitempty"`
	Current   bool      `json:"current"`
	Times     int       `json:"times"`
	FirstAt   time.Time `json:"first_at"`
	LastAt    time.Time `json:"last_at"`
	RotateURL string    `json:"rotate_url,omitempty"`
}

// ReceiptAudit says which lines of the audit log the receipt counts, and
// whether they are all there are: the log verifies, no line of the identity was
// in a file that was moved away, and none was lost in a restore.
type ReceiptAudit struct {
	From     uint64 `json:"from"`
	To       uint64 `json:"to"`
	Head     string `json:"head"`
	Complete bool   `json:"complete"`
}

// Signature is an Ed25519 signature with the audit key over
// "solekey/v1/receipt", a zero byte and the SHA-256 of the JSON without it.
type Signature struct {
	Alg   string `json:"alg"`
	Key   string `json:"key"`
	Value string `json:"value"`
}

const receiptLabel = "solekey/v1/receipt\x00"

func (r *Receipt) digest() []byte {
	unsigned := *r
	unsigned.Signature = nil
	b, err := json.Marshal(unsigned)
	if err != nil {
		panic("vault: a receipt always marshals")
	}
	sum := sha256.Sum256(b)
	return append([]byte(receiptLabel), sum[:]...)
}

func (r *Receipt) sign(st *store) {
	b64 := base64.StdEncoding.EncodeToString
	r.Signature = &Signature{Alg: "ed25519", Key: b64(st.AuditPublic()), Value: b64(st.Sign(r.digest()))}
}

// receipt lists what the closed keys of a revocation were given. A log that
// cannot be read to its end gives a receipt that says so.
func (k *Keeper) receipt(ctx context.Context, w *view, es []*seal.Entry, r Revocation) Receipt {
	out := Receipt{
		Format: receiptFormat, ID: k.now().UTC().Format(time.DateOnly) + "-" + w.head.Name, Store: w.st.ID().String()[:8],
		Identity: ReceiptIdentity{ID: w.id.String(), Name: w.head.Name}, Action: "revoke", Reason: r.Reason,
		EffectiveAt: fromMillis(w.head.Changed), Erasure: "none", Revealed: []ReceiptLabel{}, Codes: []ReceiptLabel{},
	}
	keys := make(map[string]bool)
	for _, s := range w.head.Slots {
		if len(r.Slots) == 0 || slices.Contains(r.Slots, s.ID) {
			keys[s.ID.String()] = true
			out.Keys = append(out.Keys, s.ID.String())
		}
	}
	switch {
	case r.Shred:
		out.Action, out.Erasure = "shred", k.backend.Erasure().String()
	case len(r.Slots) > 0:
		out.Action = "key-revoke"
	default:
		out.Recoverable = len(w.head.Recovery) > 0
	}
	only := keys
	if len(r.Slots) == 0 {
		only = nil // also keys whose slots made room for others
	}
	use, err := k.tally(ctx, w.id, only)
	out.Audit = ReceiptAudit{From: use.from, To: use.to, Head: fmt.Sprintf("%x", use.head), Complete: err == nil && use.whole && w.head.Flags&seal.FlagAuditOwed == 0}
	out.fill(w, es, use)
	return out
}

// fill sorts the labels into classes.
func (r *Receipt) fill(w *view, es []*seal.Entry, use tally) {
	r.Counts.Denied = use.denied
	for _, e := range es {
		u := use.labels[w.tag(Label(e.Label))]
		if e.Form != formNone || u != nil {
			r.Counts.Labels++
		}
		switch {
		case u == nil && e.Form == formNone:
		case u == nil:
			r.Counts.Untouched++
		case u.reads > 0:
			r.Counts.Revealed++
			r.Revealed = append(r.Revealed, u.label(e, u.reads))
		case u.codes > 0:
			r.Counts.Codes++
			r.Codes = append(r.Codes, u.label(e, u.codes))
		}
	}
	byLabel := func(a, b ReceiptLabel) int { return cmp.Compare(a.Label, b.Label) }
	slices.SortFunc(r.Revealed, byLabel)
	slices.SortFunc(r.Codes, byLabel)
}

func (u *used) label(e *seal.Entry, times int) ReceiptLabel {
	return ReceiptLabel{
		Label: e.Label, Version: u.version, Current: u.version == e.Version && e.Form != formNone, Times: times,
		FirstAt: u.first, LastAt: u.last, RotateURL: catalog.RotateURL(e.Label),
	}
}

// used is what the log knows of one label.
type used struct {
	reads, codes int
	version      uint32 // the newest that was read
	first, last  time.Time
	from         string
}

// tally is what the log knows of one identity.
type tally struct {
	labels   map[audit.Tag]*used
	slots    map[string]*used
	denied   int
	last     *used
	from, to uint64 // the lines that were read
	head     [sha256.Size]byte
	closed   bool // a line closed keys of it
	whole    bool // the log is verified to its end, from the creation of the identity on at least
}

// tally counts the allowed attempts of an identity, by the given keys only if
// there are any.
func (k *Keeper) tally(ctx context.Context, id identity.ID, keys map[string]bool) (tally, error) {
	t := newTally()
	born, lossy, lost := false, false, false
	rep, err := audit.VerifyAgainst(ctx, k.backend, audit.Outside{From: audit.AnyFirst}, func(_ int, r audit.Record) {
		t.to = r.Seq
		born = born || r.Identity == id && r.Event == audit.Create && !r.Denied
		if r.Event == audit.Restore && r.Identity.IsZero() {
			lossy = losesLines(r)
		}
		lost = lost || lossy && r.Event == audit.Restore && r.Identity == id
		if r.Identity == id && r.Key != audit.Owner && (keys == nil || keys[r.Key]) {
			t.add(r)
		}
	})
	t.from, t.head = rep.First, rep.Head
	t.whole = err == nil && rep.OK() && (rep.First == 0 || born) && !lost
	return t, err
}

// losesLines reports whether lines may be missing before the line of a restore:
// those after the backup, without a ledger, and those that were left out.
func losesLines(r audit.Record) bool {
	words := strings.Fields(r.Note)
	return r.From != fromLedger || len(words) != 3 || words[1] != "0"
}

func newTally() tally {
	return tally{labels: make(map[audit.Tag]*used), slots: make(map[string]*used), last: new(used)}
}

func (t *tally) add(r audit.Record) {
	if r.Denied {
		t.denied++
		return
	}
	from := r.From
	if from == "" {
		from = r.Via
	}
	note := func(u *used, version uint32) {
		switch r.Event {
		case audit.Get:
			u.reads++
		case audit.Code:
			u.codes++
		}
		u.version = max(u.version, version)
		if u.first.IsZero() {
			u.first = r.Time
		}
		u.last, u.from = r.Time, from
	}
	note(t.last, 0)
	slot := t.slots[r.Key]
	if slot == nil {
		slot = new(used)
		t.slots[r.Key] = slot
	}
	note(slot, 0)
	if r.Event != audit.Get && r.Event != audit.Code {
		return
	}
	for _, ref := range r.Labels {
		u := t.labels[ref.Tag]
		if u == nil {
			u = new(used)
			t.labels[ref.Tag] = u
		}
		note(u, ref.Version)
	}
}

// Used counts what was given out, and when last.
type Used struct {
	Reads, Codes int
	Last         time.Time // zero: never
	From         string    // address or transport of the last call
}

// Usage is what the audit log knows of an identity.
type Usage struct {
	Last   Used
	Slots  map[string]Used // by the text of the slot ID
	Labels map[Label]Used
}

// Usage counts the allowed calls of an identity by key and label. It reads
// the whole audit log.
func (k *Keeper) Usage(ctx context.Context, id identity.ID) (Usage, error) {
	t, err := k.tally(ctx, id, nil)
	if err != nil {
		return Usage{}, err
	}
	return k.usage(ctx, id, t)
}

// Usages is Usage of every identity of the log, in one reading of it.
func (k *Keeper) Usages(ctx context.Context) (map[identity.ID]Usage, error) {
	tallies := make(map[identity.ID]*tally)
	for r, err := range audit.Records(ctx, k.backend) {
		if err != nil {
			return nil, err
		}
		if r.Identity.IsZero() || r.Key == audit.Owner {
			continue
		}
		t := tallies[r.Identity]
		if t == nil {
			fresh := newTally()
			t = &fresh
			tallies[r.Identity] = t
		}
		t.add(r)
	}
	out := make(map[identity.ID]Usage, len(tallies))
	for id, t := range tallies {
		u, err := k.usage(ctx, id, *t)
		if err != nil {
			u = Usage{Last: t.last.public()} // one that does not open hides no other
		}
		out[id] = u
	}
	return out, nil
}

func (k *Keeper) usage(ctx context.Context, id identity.ID, t tally) (Usage, error) {
	w, es, err := k.listing(ctx, id, nil)
	if err != nil {
		return Usage{}, err
	}
	defer w.wipe()
	out := Usage{Last: t.last.public(), Slots: make(map[string]Used), Labels: make(map[Label]Used)}
	for key, u := range t.slots {
		out.Slots[key] = u.public()
	}
	for _, e := range es {
		if u := t.labels[w.tag(Label(e.Label))]; u != nil {
			out.Labels[Label(e.Label)] = u.public()
		}
	}
	return out, nil
}

func (u *used) public() Used {
	return Used{Reads: u.reads, Codes: u.codes, Last: u.last, From: u.from}
}

package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// The errors of receipts. None quotes the receipt.
var (
	// ErrMalformedReceipt reports a text that is not a receipt as it is
	// written.
	ErrMalformedReceipt = errors.New("not a receipt")
	// ErrForged reports a receipt that the given key did not sign, or that was
	// changed after it was signed.
	ErrForged = errors.New("the signature does not fit")
	// ErrMiscounted reports a receipt that says something else than the log.
	ErrMiscounted = errors.New("the audit log counts otherwise")
	// ErrUncountable reports a receipt over lines of the log that were moved
	// away.
	ErrUncountable = errors.New("it cannot be counted again: earlier files of the audit log were moved away")
	// ErrReplaced reports a receipt over lines of the log that a later restore
	// or repair of the store could not take over.
	ErrReplaced = errors.New("it cannot be counted again: a restore or repair of the store could not take over the lines of the audit log that it counts")
)

// ParseReceipt reads a receipt. White space between its parts does not count;
// apart from that it refuses whatever would not be written so, as what a
// signature covers must not be read in two ways. Its texts but the reason are
// plain ASCII, so that showing one cannot talk to a terminal.
func ParseReceipt(b []byte) (Receipt, error) {
	var r Receipt
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil || r.Format != receiptFormat {
		return Receipt{}, ErrMalformedReceipt
	}
	var got bytes.Buffer
	want, err := json.Marshal(r)
	if err != nil || json.Compact(&got, b) != nil || !bytes.Equal(got.Bytes(), want) {
		return Receipt{}, ErrMalformedReceipt
	}
	if !r.plain() {
		return Receipt{}, ErrMalformedReceipt
	}
	return r, nil
}

// plain reports whether all texts but the reason are printable ASCII.
func (r *Receipt) plain() bool {
	texts := append([]string{r.ID, r.Store, r.Identity.ID, r.Identity.Name, r.Action, r.Erasure, r.Heir, r.Audit.Head}, r.Keys...)
	for _, l := range slices.Concat(r.Revealed, r.Codes) {
		texts = append(texts, l.Label, l.RotateURL)
	}
	odd := func(c rune) bool { return c < ' ' || c > '~' }
	return !slices.ContainsFunc(texts, func(s string) bool { return strings.ContainsFunc(s, odd) })
}

// Verify checks the signature against pub, the audit public key of the store,
// which must come from elsewhere than the receipt. It needs no store. Its
// error is [ErrForged].
func (r Receipt) Verify(pub []byte) error {
	if r.Signature == nil || r.Signature.Alg != "ed25519" {
		return ErrForged
	}
	key, keyErr := base64.StdEncoding.Strict().DecodeString(r.Signature.Key)
	sig, sigErr := base64.StdEncoding.Strict().DecodeString(r.Signature.Value)
	if keyErr != nil || sigErr != nil || subtle.ConstantTimeCompare(key, pub) != 1 || !seal.Signed(pub, r.digest(), sig) {
		return ErrForged
	}
	return nil
}

// AuditPublic returns the public half of the key that signs the receipts of
// this store. It outlives rotations of the root secret.
func (k *Keeper) AuditPublic(ctx context.Context) ([]byte, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	return st.AuditPublic(), nil
}

// Recount counts once more, from the audit log up to the line that r names,
// what was given out. It works after a shred as well. Its error wraps
// [ErrMiscounted], [ErrUncountable] or [ErrReplaced] if the lines are not all here any
// more, or that of reading the log.
func (k *Keeper) Recount(ctx context.Context, r Receipt) error {
	st, err := k.open(ctx, 0)
	if err != nil {
		return err
	}
	id, err := identity.ParseID(r.Identity.ID)
	if err != nil || r.Store != st.ID().String()[:8] {
		return fmt.Errorf("%w: it is of another store", ErrMiscounted)
	}
	t, err := k.tallyTo(ctx, st, id, r)
	if err != nil {
		return err
	}
	named := make(map[audit.Tag]bool)
	for _, l := range r.Revealed {
		if err := t.recount(st, id, l, named, func(u *used) bool { return u.reads > 0 && l.Times == u.reads }); err != nil {
			return err
		}
	}
	for _, l := range r.Codes {
		if err := t.recount(st, id, l, named, func(u *used) bool { return u.reads == 0 && l.Times == u.codes }); err != nil {
			return err
		}
	}
	c := r.Counts
	switch {
	case len(named) != len(t.labels):
		return fmt.Errorf("%w: it leaves out a label that was given out", ErrMiscounted)
	case c.Revealed != len(r.Revealed) || c.Codes != len(r.Codes) || c.Denied != t.denied || c.Labels != c.Revealed+c.Codes+c.Untouched:
		return fmt.Errorf("%w: its sums are wrong", ErrMiscounted)
	case r.Audit.Complete && !t.closed:
		return fmt.Errorf("%w: it ends before the line that closed the keys", ErrMiscounted)
	}
	return nil
}

// closedBy reports whether a line closed what the receipt says is closed.
func (r *Receipt) closedBy(rec audit.Record, keys map[string]bool) bool {
	switch rec.Event {
	case audit.Revoke, audit.Shred:
		return true
	case audit.Restore:
		return rec.Note != ""
	case audit.KeyRevoke, audit.Rotate:
		return r.Action == "key-revoke" && (rec.Slot == "" || keys[rec.Slot]) || strings.HasPrefix(rec.Note, noteLeaked)
	}
	return false
}

// recount compares what a receipt says of one label, and notes that it does.
func (t *tally) recount(st *store, id identity.ID, l ReceiptLabel, named map[audit.Tag]bool, class func(*used) bool) error {
	tag := audit.Tag(st.Tag(id, l.Label))
	u := t.labels[tag]
	if u == nil || named[tag] || !class(u) || l.Version != u.version || !l.FirstAt.Equal(u.first) || !l.LastAt.Equal(u.last) {
		return fmt.Errorf("%w: %q", ErrMiscounted, l.Label)
	}
	named[tag] = true
	return nil
}

// tallyTo counts the attempts that r covers, up to the line it ends with.
func (k *Keeper) tallyTo(ctx context.Context, st *store, id identity.ID, r Receipt) (tally, error) {
	keys := make(map[string]bool)
	for _, key := range r.Keys {
		keys[key] = true
	}
	t := newTally()
	first, born, replaced := true, false, false
	for raw, err := range k.backend.Lines(ctx) {
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		rec, err := audit.Parse(raw)
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		if first {
			t.from, first = rec.Seq, false
		}
		if _, proven := parseRebirth(st.Store, rec); proven && losesLines(rec) && !rec.Time.Before(r.EffectiveAt) {
			replaced = true // from here on at least, other lines have the numbers of those before it
		}
		if rec.Identity == id && !rec.Denied {
			born = born || rec.Event == audit.Create
			t.closed = t.closed || r.closedBy(rec, keys)
		}
		if rec.Identity == id && rec.Key != audit.Owner && (r.Action != "key-revoke" || keys[rec.Key]) {
			t.add(rec)
		}
		if rec.Seq == r.Audit.To {
			t.head = sha256.Sum256(raw)
			if fmt.Sprintf("%x", t.head) != r.Audit.Head {
				if replaced {
					return t, ErrReplaced
				}
				return t, fmt.Errorf("%w: the line that it ends with is another one", ErrMiscounted)
			}
			if t.from > r.Audit.From && !born {
				return t, ErrUncountable
			}
			return t, nil
		}
		if rec.Seq > r.Audit.To && t.from > r.Audit.To {
			return t, ErrUncountable
		}
	}
	if replaced {
		return t, ErrReplaced
	}
	return t, fmt.Errorf("%w: the log ends before it", ErrMiscounted)
}

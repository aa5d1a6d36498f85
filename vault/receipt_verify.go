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
)

// ParseReceipt reads a receipt. White space between its parts does not count;
// apart from that it refuses whatever would not be written so, as what a
// signature covers must not be read in two ways.
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
	return r, nil
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
// [ErrMiscounted], unless the log cannot be read.
func (k *Keeper) Recount(ctx context.Context, r Receipt) error {
	st, err := k.open(ctx, 0)
	if err != nil {
		return err
	}
	id, err := identity.ParseID(r.Identity.ID)
	if err != nil || r.Store != st.ID().String()[:8] {
		return fmt.Errorf("%w: it is of another store", ErrMiscounted)
	}
	t, err := k.tallyTo(ctx, id, r)
	if err != nil {
		return err
	}
	named := make(map[audit.Tag]bool)
	for _, l := range append(r.Revealed[:len(r.Revealed):len(r.Revealed)], r.Codes...) {
		tag := audit.Tag(st.Tag(id, l.Label))
		named[tag] = true
		u := t.labels[tag]
		if u == nil || l.Times != u.reads && l.Times != u.codes || l.Version != u.version || !l.FirstAt.Equal(u.first) || !l.LastAt.Equal(u.last) {
			return fmt.Errorf("%w: %s", ErrMiscounted, l.Label)
		}
	}
	for tag := range t.labels {
		if !named[tag] {
			return fmt.Errorf("%w: it leaves out a label that was given out", ErrMiscounted)
		}
	}
	if r.Counts.Revealed != len(r.Revealed) || r.Counts.Codes != len(r.Codes) || r.Counts.Denied != t.denied {
		return fmt.Errorf("%w: its sums are wrong", ErrMiscounted)
	}
	return nil
}

// tallyTo counts the attempts that r covers, up to the line it ends with.
func (k *Keeper) tallyTo(ctx context.Context, id identity.ID, r Receipt) (tally, error) {
	keys := make(map[string]bool)
	for _, key := range r.Keys {
		keys[key] = true
	}
	t := newTally()
	for raw, err := range k.backend.Lines(ctx) {
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		rec, err := audit.Parse(raw)
		if err != nil {
			return t, fmt.Errorf("reading the audit log: %w", err)
		}
		if rec.Identity == id && rec.Key != audit.Owner && (r.Action != "key-revoke" || keys[rec.Key]) {
			t.add(rec)
		}
		if rec.Seq == r.Audit.To {
			t.head = sha256.Sum256(raw)
			if fmt.Sprintf("%x", t.head) != r.Audit.Head {
				return t, fmt.Errorf("%w: the line that it ends with is another one", ErrMiscounted)
			}
			return t, nil
		}
	}
	return t, fmt.Errorf("%w: the log ends before it", ErrMiscounted)
}

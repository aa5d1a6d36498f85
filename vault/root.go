package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// ErrMalformedRoot reports a text that is not root material.
var ErrMalformedRoot = errors.New("not the root secret of a store")

// Root is the root material of one store. Together with a shred cell it opens
// the outer lock; without a key of an identity it opens no value. It prints
// as [redacted].
type Root struct {
	_ [0]func()
	// A function, because printers follow pointers in unexported fields but
	// enter no function.
	r func() seal.Root
}

// NewRoot makes the root material of a new store.
func NewRoot() Root { return rootOf(seal.NewRoot()) }

func rootOf(r seal.Root) Root { return Root{r: func() seal.Root { return r }} }

// ParseRoot reads the text that [Root.Reveal] returns.
func ParseRoot(text string) (Root, error) {
	r, err := seal.ParseRoot(text)
	if err != nil {
		return Root{}, fmt.Errorf("%w: %w", ErrMalformedRoot, err)
	}
	return rootOf(r), nil
}

// IsZero reports whether r is the zero Root, which belongs to no store.
func (r Root) IsZero() bool { return r.r == nil }

// Reveal returns root text, for the place where root material rests.
func (r Root) Reveal() string { return r.r().Reveal() }

// StoreID returns the store that the material belongs to.
func (r Root) StoreID() identity.ID { return r.r().StoreID() }

// String returns [redacted].
func (Root) String() string { return redacted }

// GoString returns [redacted].
func (Root) GoString() string { return redacted }

// Format writes [redacted] for every verb.
func (Root) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns [redacted].
func (Root) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted]; it serves JSON as well.
func (Root) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// InitOptions adjust a new store.
type InitOptions struct {
	NoRecovery bool             // no recovery key: lost agent keys are lost vaults
	Exposure   Exposure         // default exposure of entries; zero: ExposeReveal
	Now        func() time.Time // nil: time.Now
}

// Birth is what [Init] made.
type Birth struct {
	StoreID     identity.ID
	Fingerprint identity.ID
	Recovery    identity.Key // to be shown once; the zero Key with NoRecovery
}

// Init makes a store in b, a fresh engine: store record, then the genesis
// line of the audit log. The text of root must rest at its source before. A
// store record that exists is refused with exists.
func Init(ctx context.Context, b storage.Backend, root Root, o InitOptions) (Birth, error) {
	now := time.Now
	if o.Now != nil {
		now = o.Now
	}
	st := root.r().Store()
	birth := Birth{StoreID: root.StoreID()}
	rec := seal.StoreRecord{Gen: 1, Created: millis(now()), DefaultExposure: uint8(max(o.Exposure, ExposeReveal)), WriteVersion: 1}
	if !o.NoRecovery {
		birth.Recovery = identity.NewRecoveryKey(root.StoreID(), func(seed [32]byte) identity.ID {
			rec.RecoveryPK = seal.RecoveryPublicKey(seed)
			return st.Fingerprint(rec.RecoveryPK)
		})
	}
	birth.Fingerprint = st.Fingerprint(rec.RecoveryPK)
	meta, err := st.SealStoreRecord(rec)
	if err != nil {
		return Birth{}, fmt.Errorf("sealing store record: %w", err)
	}
	if _, err := b.Commit(ctx, identity.ID{}, 0, storage.Batch{Meta: meta}); err != nil {
		if errors.Is(err, storage.ErrConflict) {
			return Birth{}, refuse(Exists, "There is a store already.", "solekey identity list")
		}
		return Birth{}, fmt.Errorf("writing store record: %w", err)
	}
	if err := audit.Append(ctx, b, genesis(st, rec.RecoveryPK, now())); err != nil {
		return Birth{}, err
	}
	return birth, nil
}

// genesis is the first line of a log. Its note ties the log to the store:
// store ID, audit public key, hash of the recovery public key.
func genesis(st *seal.Store, recoveryPK []byte, now time.Time) audit.Record {
	var rec [sha256.Size]byte
	if len(recoveryPK) > 0 {
		rec = sha256.Sum256(recoveryPK)
	}
	note := genesisNote(st.ID(), st.AuditPublic(), rec)
	return audit.Record{Time: now, Event: audit.Genesis, Key: audit.Owner, Via: "cli", Note: note}
}

func genesisNote(store identity.ID, auditPublic []byte, recoveryHash [sha256.Size]byte) string {
	return store.String() + " " + hex.EncodeToString(auditPublic) + " " + hex.EncodeToString(recoveryHash[:])
}

package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// errEpochGone reports a header whose root secret is in no root text. Beside
// a rotation it means that the header was read before it was resealed, and
// root text after: the next reading finds both.
var errEpochGone = fmt.Errorf("root secret of this epoch is gone: %w", errDamaged)

// epochTries is how often an identity is read again for a root secret that is
// gone.
const epochTries = 3

// newer returns the store with the root secret of the store record, if that
// is newer than what st seals under; else nil.
func (k *Keeper) newer(ctx context.Context, st *store) (*store, error) {
	res, err := k.backend.Get(ctx, identity.ID{})
	if err != nil {
		return nil, fmt.Errorf("reading store record: %w", err)
	}
	_, epoch, err := seal.Peek(res.Meta)
	if err != nil {
		return nil, fmt.Errorf("reading store record: %w", err)
	}
	if epoch <= st.root.Epoch() {
		return nil, nil
	}
	return k.open(ctx, epoch)
}

// sealed is what a process sealed without reading the identity before.
type sealed struct {
	st    *store
	rev   storage.Rev
	meta  []byte
	again func(*store) (meta []byte, gen uint64, err error) // seals the same once more
}

// overtake sees to it that what was committed under st is not left behind by
// a rotation of the root secret which listed the identities before the commit.
// It comes after the commit and before anybody relies on it: either this
// reading of the store record sees the new epoch, or the listing of the
// rotation, which follows its record, sees the commit.
func (k *Keeper) overtake(ctx context.Context, id identity.ID, s sealed) error {
	for {
		st, err := k.newer(ctx, s.st)
		if err != nil || st == nil {
			return err
		}
		meta, gen, err := s.again(st)
		if err != nil {
			return err
		}
		rec := audit.Record{Time: k.now(), Event: audit.RootRotate, Identity: id, Key: audit.Owner, Via: "cli", Gen: gen, Was: metaHash(s.meta), Is: metaHash(meta)}
		if err := k.append(ctx, rec); err != nil {
			return err
		}
		rev, err := k.backend.Commit(ctx, id, s.rev, storage.Batch{Meta: meta})
		if errors.Is(err, storage.ErrConflict) {
			return nil // the rotation resealed it, or it was changed under the new epoch
		}
		if err != nil {
			return fmt.Errorf("resealing under the new root secret: %w", err)
		}
		s.st, s.rev, s.meta = st, rev, meta
	}
}

package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// RootSource finds the root material of a store. It is called without any
// lock held, at the first call that needs it, and again when a header names
// an epoch that the material does not have.
type RootSource func(ctx context.Context, store identity.ID) (Root, error)

// Options adjust a Keeper. The zero value is right for a program.
type Options struct {
	Now func() time.Time // nil: time.Now
	Log *slog.Logger     // nil: silent
}

// Keeper is the owner's half of a store. No method returns a secret value;
// [Keeper.Unlock] is the only way to one, and takes a key of the identity.
// A Keeper is safe for concurrent use.
type Keeper struct {
	backend storage.Backend
	root    RootSource
	now     func() time.Time
	log     *slog.Logger

	mu    sync.Mutex
	store *store // nil until the first call

	fresh     freshness
	strangers strangers
}

// store is what a Keeper knows of its store once root material is at hand.
type store struct {
	*seal.Store
	root   seal.Root
	record seal.StoreRecord
	decoy  decoy
}

// ErrNoStore reports that the place of the store holds no store record.
var ErrNoStore = errors.New("no store record")

// Open returns a Keeper of the store in b. It does no I/O: store record and
// root material are read by the first call that needs them. The Keeper owns b.
func Open(b storage.Backend, root RootSource, o Options) *Keeper {
	k := &Keeper{backend: b, root: root, now: o.Now, log: o.Log}
	if k.now == nil {
		k.now = time.Now
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k
}

// Close writes what is still counted and closes the store.
func (k *Keeper) Close() error {
	if rec, ok := k.strangers.take(k.now(), true); ok {
		if err := audit.Append(context.Background(), k.backend, rec...); err != nil {
			k.log.Warn("refused keys could not be counted in the audit log")
		}
	}
	return k.backend.Close()
}

// open returns the store with root material that has the given epoch; 0 is
// any.
func (k *Keeper) open(ctx context.Context, epoch uint32) (*store, error) {
	k.mu.Lock()
	st := k.store
	k.mu.Unlock()
	if st != nil && (epoch == 0 || st.root.Has(epoch)) {
		return st, nil
	}
	st, err := k.readStore(ctx)
	if err != nil {
		return nil, err
	}
	if epoch != 0 && !st.root.Has(epoch) {
		return nil, fmt.Errorf("finding root secret of epoch %d: %w", epoch, seal.ErrRefused)
	}
	k.mu.Lock()
	k.store = st
	k.mu.Unlock()
	return st, nil
}

// readStore reads store record and root material. Beside a rotation of the
// root secret the record may be older than the material: then again.
func (k *Keeper) readStore(ctx context.Context) (*store, error) {
	for try := 1; ; try++ {
		st, err := k.readStoreOnce(ctx)
		if !errors.Is(err, seal.ErrRefused) || try == epochTries {
			return st, err
		}
	}
}

func (k *Keeper) readStoreOnce(ctx context.Context) (*store, error) {
	res, err := k.backend.Get(ctx, identity.ID{})
	if err != nil {
		return nil, fmt.Errorf("reading store record: %w", err)
	}
	if res.Rev == 0 {
		return nil, ErrNoStore
	}
	id, err := seal.PeekStoreID(res.Meta)
	if err != nil {
		return nil, fmt.Errorf("reading store record: %w", err)
	}
	root, err := k.root(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("finding root material: %w", err)
	}
	if root.IsZero() || root.StoreID() != id {
		return nil, errForeignRoot
	}
	st := &store{Store: root.r().Store(), root: root.r()}
	if st.record, err = st.OpenStoreRecord(res.Meta); err != nil {
		if _, epoch, peekErr := seal.Peek(res.Meta); peekErr == nil && !root.r().Has(epoch) {
			return nil, &Refusal{Word: Unavailable, Message: errOlderRoot.Message, Hint: errOlderRoot.Hint, cause: err}
		}
		return nil, fmt.Errorf("opening store record: %w", err)
	}
	if st.decoy, err = newDecoy(st.Store); err != nil {
		return nil, err
	}
	return st, nil
}

var errOlderRoot = refuse(Unavailable, "The root secret that this directory is sealed under is gone: the one at hand is of the same store, and younger or older.", "Restore the newest backup, which carries its root secret.")

var errForeignRoot = refuse(Unavailable, "The root secret belongs to another store.", "Put the root secret of this store back, then repeat the command.")

// append writes audit lines, with the counted strangers riding along. It
// returns once they are durable.
func (k *Keeper) append(ctx context.Context, recs ...audit.Record) error {
	counted, ok := k.strangers.take(k.now(), false)
	if ok {
		recs = append(recs, counted...)
	}
	err := audit.Append(ctx, k.backend, recs...)
	if err != nil && ok {
		k.strangers.giveBack(counted)
	}
	return err
}

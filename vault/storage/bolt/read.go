package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// The keys inside an identity's bucket: one byte that keeps the revision apart
// from the caller's keys.
const (
	tagRev = 0x00 // revision u64 BE, then Meta
	tagKey = 0x01 // then the caller's key
	revLen = 8
)

// errShape reports a bucket that does not have the shape of an identity.
var errShape = fmt.Errorf("identity record has a wrong shape: %w", storage.ErrDamaged)

// Get implements [storage.Store].
func (s *Store) Get(ctx context.Context, id identity.ID, keys ...string) (storage.Result, error) {
	if err := storage.CheckRead(keys...); err != nil {
		return storage.Result{}, err
	}
	var r storage.Result
	err := s.read(ctx, func(tx *bbolt.Tx) error { return get(tx, id, keys, &r) })
	if err != nil {
		return storage.Result{}, fmt.Errorf("reading identity: %w", err)
	}
	return r, nil
}

// read runs f in a read transaction within the turn.
func (s *Store) read(ctx context.Context, f func(*bbolt.Tx) error) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.leave()
	g := s.watch.enter()
	defer s.watch.leave(g)
	return s.db.view(f)
}

func get(tx *bbolt.Tx, id identity.ID, keys []string, r *storage.Result) error {
	b, err := bucket(tx, id)
	if err != nil || b == nil {
		return err
	}
	c := b.Cursor() // one for all: each would allocate its own stack
	if r.Rev, r.Meta, err = parseRevision(lookup(c, []byte{tagRev})); err != nil {
		return err
	}
	r.Meta = copied(r.Meta)
	if len(keys) == 0 {
		return nil
	}
	r.Vals = make(map[string][]byte, len(keys))
	var buf [1 + storage.MaxKey]byte
	for _, k := range keys {
		v := lookup(c, tagged(&buf, k))
		if len(v) > storage.MaxValue {
			return errShape // a damaged length would have us copy the whole map
		}
		if v != nil {
			r.Vals[k] = copied(v)
		}
	}
	return nil
}

// lookup returns the value of key, nil if there is none.
func lookup(c *bbolt.Cursor, key []byte) []byte {
	k, v := c.Seek(key)
	if !bytes.Equal(k, key) {
		return nil
	}
	return v
}

// tagged writes the stored form of a key into buf.
func tagged(buf *[1 + storage.MaxKey]byte, key string) []byte {
	buf[0] = tagKey
	return buf[:1+copy(buf[1:], key)]
}

// copied copies v; the copy of an empty value is empty and not nil.
func copied(v []byte) []byte { return append([]byte{}, v...) }

// bucket returns the bucket of an identity, nil if there is none.
func bucket(tx *bbolt.Tx, id identity.ID) (*bbolt.Bucket, error) {
	all := tx.Bucket(bucketI())
	if all == nil {
		return nil, errShape
	}
	b := all.Bucket(id[:])
	if b == nil && all.Get(id[:]) != nil {
		return nil, errShape
	}
	return b, nil
}

// revision reads revision and Meta of an identity's bucket. Meta points into
// the transaction; it is never nil.
func revision(b *bbolt.Bucket) (storage.Rev, []byte, error) {
	return parseRevision(b.Get([]byte{tagRev}))
}

func parseRevision(v []byte) (storage.Rev, []byte, error) {
	if len(v) < revLen || len(v) > revLen+storage.MaxMeta {
		return 0, nil, errShape
	}
	rev := storage.Rev(binary.BigEndian.Uint64(v))
	if rev == 0 {
		return 0, nil, errShape
	}
	return rev, v[revLen:], nil
}

// List implements [storage.Store].
func (s *Store) List(ctx context.Context, id identity.ID, after string, limit int) (storage.Page, error) {
	if err := storage.CheckList(after, limit); err != nil {
		return storage.Page{}, err
	}
	var p storage.Page
	err := s.read(ctx, func(tx *bbolt.Tx) error { return list(tx, id, after, limit, &p) })
	if err != nil {
		return storage.Page{}, fmt.Errorf("listing identity: %w", err)
	}
	return p, nil
}

func list(tx *bbolt.Tx, id identity.ID, after string, limit int, p *storage.Page) error {
	b, err := bucket(tx, id)
	if err != nil || b == nil {
		return err
	}
	if p.Rev, _, err = revision(b); err != nil {
		return err
	}
	var buf [1 + storage.MaxKey]byte
	from := tagged(&buf, after)
	c := b.Cursor()
	size := 0
	for k, v := c.Seek(from); k != nil && k[0] == tagKey; k, v = c.Next() {
		if bytes.Equal(k, from) {
			continue // also the bare tag, which no key makes
		}
		if v == nil || len(v) > storage.MaxValue || len(k) > len(buf) {
			return errShape
		}
		if size += len(v); len(p.Items) == limit || len(p.Items) > 0 && size > storage.MaxPage {
			p.More = true
			return nil
		}
		p.Items = append(p.Items, storage.Item{Key: string(k[1:]), Val: copied(v)})
	}
	return nil
}

// Identities implements [storage.Store].
func (s *Store) Identities(ctx context.Context, after identity.ID, limit int) ([]storage.Ident, error) {
	if err := storage.CheckIdentities(limit); err != nil {
		return nil, err
	}
	var all []storage.Ident
	err := s.read(ctx, func(tx *bbolt.Tx) (err error) {
		all, err = identities(tx, after, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing identities: %w", err)
	}
	return all, nil
}

func identities(tx *bbolt.Tx, after identity.ID, limit int) ([]storage.Ident, error) {
	b := tx.Bucket(bucketI())
	if b == nil {
		return nil, errShape
	}
	var all []storage.Ident
	c := b.Cursor()
	for k, v := c.Seek(after[:]); k != nil && len(all) < limit; k, v = c.Next() {
		if bytes.Equal(k, after[:]) {
			continue
		}
		if len(k) != len(after) || v != nil {
			return nil, errShape
		}
		one := storage.Ident{ID: identity.ID(k)}
		nested := b.Bucket(k)
		if nested == nil {
			return nil, errShape
		}
		rev, meta, err := revision(nested)
		if err != nil {
			return nil, err
		}
		one.Rev, one.Meta = rev, copied(meta)
		all = append(all, one)
	}
	return all, nil
}

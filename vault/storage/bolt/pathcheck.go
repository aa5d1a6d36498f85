package bolt

import (
	"bytes"
	"encoding/binary"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/solekey/solekey/identity"
)

// A commit rebuilds whole pages: those on the way to what it changes, and the
// neighbours with which it may merge them. bbolt believes every length in
// them, of other entries too, and asks for as much memory as one says. So they
// are checked before, as the pages of treecheck.go are: what lies is refused
// before a write begins, and the store goes on.

// paths checks the pages that a group of commits rebuilds, each once.
type paths struct {
	tree  *treeCheck
	pages map[uint64][]byte
}

// open reads the root record of tx, which is that of the whole group.
func (p *paths) open(h *handle, tx *bbolt.Tx) error {
	if p.tree != nil {
		return nil
	}
	info, err := h.file.Stat()
	if err != nil {
		return err
	}
	m, _, err := metaOf(h.file, info.Size(), uint64(tx.ID()))
	if err != nil {
		return err
	}
	p.tree, p.pages = &treeCheck{f: h.file, m: *m, seen: map[uint64]bool{}}, map[uint64][]byte{}
	return nil
}

// check checks the pages that a change of these entries of id rebuilds.
func (p *paths) check(id identity.ID, tags ...[]byte) error {
	all, err := p.follow(p.tree.m.root, bucketI())
	if err != nil || all == nil {
		return err
	}
	own, err := p.inside(all, id[:])
	if err != nil || own == nil {
		return err
	}
	for _, tag := range tags {
		if _, err := p.inside(own, tag); err != nil {
			return err
		}
	}
	return nil
}

// inside is follow in the tree of a bucket, given as its value.
func (p *paths) inside(bucket, key []byte) (val []byte, err error) {
	if len(bucket) < bucketHead {
		return nil, damaged("a bucket is too short")
	}
	if root := binary.NativeEndian.Uint64(bucket); root != 0 {
		return p.follow(root, key)
	}
	page := bucket[bucketHead:]
	if len(page) < pageHead || binary.NativeEndian.Uint16(page[8:]) != leafFlag {
		return nil, damaged("a bucket is too short")
	}
	if err := orderly(0, page); err != nil {
		return nil, err
	}
	return valueOf(page, key), nil
}

// follow checks the pages from root down to the leaf of key, with their direct
// neighbours, and returns the value of key, nil if there is none.
func (p *paths) follow(root uint64, key []byte) (val []byte, err error) {
	for range deepestTree {
		b, err := p.page(root)
		if err != nil {
			return nil, err
		}
		if binary.NativeEndian.Uint16(b[8:]) == leafFlag {
			return valueOf(b, key), nil
		}
		at, _ := entryOf(b, key)
		for n := max(at-1, 0); n <= at+1 && n < int(binary.NativeEndian.Uint16(b[10:])); n++ {
			if _, err := p.page(childOf(b, n)); err != nil {
				return nil, err
			}
		}
		root = childOf(b, at)
	}
	return nil, damaged("page %d lies too deep", root)
}

// page returns a page that was checked.
func (p *paths) page(id uint64) ([]byte, error) {
	if b, ok := p.pages[id]; ok {
		return b, nil
	}
	b, err := p.tree.page(id, longestNode)
	if err == nil {
		err = orderly(id, b)
	}
	if err != nil {
		return nil, err
	}
	p.pages[id] = b
	return b, nil
}

// orderly checks that every entry of a page lies in it, in order.
func orderly(id uint64, b []byte) error {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != branchFlag && flags != leafFlag || flags == branchFlag && count == 0 {
		return damaged("page %d is of kind %#x", id, flags)
	}
	if pageHead+count*element > len(b) {
		return damaged("page %d holds too much", id)
	}
	var before []byte
	for i := range count {
		key, _, ok := elementOf(b, i, flags)
		switch {
		case !ok:
			return damaged("page %d: entry %d lies outside", id, i)
		case i > 0 && bytes.Compare(before, key) >= 0:
			return damaged("page %d: entry %d is out of order", id, i)
		}
		before = key
	}
	return nil
}

// entryOf returns the last entry of an orderly page that is not above key, the
// first one if all are.
func entryOf(b, key []byte) (at int, exact bool) {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	at, exact = sort.Find(count, func(i int) int {
		k, _, _ := elementOf(b, i, flags)
		return bytes.Compare(key, k)
	})
	if !exact {
		at = max(at-1, 0)
	}
	return at, exact
}

// valueOf returns the value of key in an orderly leaf, nil if there is none.
func valueOf(b, key []byte) (val []byte) {
	if at, exact := entryOf(b, key); exact {
		_, val, _ = elementOf(b, at, leafFlag)
	}
	return val
}

// childOf returns the page that entry i of a branch page leads to.
func childOf(b []byte, i int) uint64 { return binary.NativeEndian.Uint64(b[pageHead+i*element+8:]) }

package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/solekey/solekey/vault/storage"
)

// bbolt's own check follows lengths that it finds, on the mapped file and in a
// goroutine of its own, where a fault ends the process. This one reads the
// file, believes nothing that it has not compared with the size of the page,
// and finds the same: pages that are out of order, used twice, or neither used
// nor free.

const (
	pageHead   = 16
	element    = 16 // of branch and leaf pages
	bucketHead = 16 // root page and sequence; an inline page follows if the root is 0
	bucketFlag = 0x01

	longestNode = 8 << 20 // a leaf with values, however they were split
	deepestTree = 64
)

// treeCheck is one run over the pages that a meta leads to.
type treeCheck struct {
	f    io.ReaderAt
	m    meta
	seen map[uint64]bool
}

// errOneMeta reports a root record that damage destroyed or a crash tore. bbolt
// goes on with the other one, which is a commit behind if this was the newer;
// the next commit writes it again, and with it goes the trace.
var errOneMeta = damaged("one of its two root records is invalid: the last change may be missing")

// checkPages checks every page of a bbolt file as of transaction txn.
func checkPages(f io.ReaderAt, size int64, txn uint64) error {
	m, fellBack, err := metaOf(f, size, txn)
	if err != nil {
		return err
	}
	if fellBack {
		return errors.Join(errOneMeta, checkTreeOf(f, m))
	}
	return checkTreeOf(f, m)
}

// checkTreeOf checks every page that m leads to.
func checkTreeOf(f io.ReaderAt, m *meta) error {
	c := &treeCheck{f: f, m: *m, seen: make(map[uint64]bool)}
	if err := c.node(m.root, nil, nil, 0); err != nil {
		return err
	}
	if err := c.freeList(); err != nil {
		return err
	}
	for p := uint64(2); p < m.pages; p++ {
		if !c.seen[p] {
			return damaged("page %d is neither used nor free", p)
		}
	}
	return nil
}

// metaOf returns the meta of a transaction, and whether the other is invalid.
func metaOf(f io.ReaderAt, size int64, txn uint64) (_ *meta, fellBack bool, _ error) {
	p, err := readMetas(f, size)
	if err != nil {
		return nil, false, err
	}
	if err := p.meta.checkSize(); err != nil {
		return nil, false, err
	}
	if p.meta.txn == txn {
		return &p.meta, p.fellBack, nil
	}
	for _, off := range []int64{0, int64(p.meta.pageSize)} { // a commit followed
		m, _, err := readMeta(f, off)
		if err != nil {
			return nil, false, err
		}
		if m != nil && m.txn == txn && m.pageSize == p.meta.pageSize {
			return m, false, nil
		}
	}
	return nil, false, fmt.Errorf("%s changed while it was checked: %w", dbName, storage.ErrUnavailable)
}

// page reads a page with what overflows it, and notes that it is used.
func (c *treeCheck) page(id uint64, most int64) ([]byte, error) {
	if id < 2 || id >= c.m.pages {
		return nil, damaged("page %d does not exist", id)
	}
	size := int64(c.m.pageSize)
	b := make([]byte, size)
	if _, err := c.f.ReadAt(b, int64(id)*size); err != nil {
		return nil, fmt.Errorf("reading %s: %w: %w", dbName, err, storage.ErrDamaged)
	}
	overflow := uint64(binary.NativeEndian.Uint32(b[12:]))
	switch {
	case binary.NativeEndian.Uint64(b) != id:
		return nil, damaged("page %d names itself otherwise", id)
	case overflow >= c.m.pages-id || int64(overflow+1)*size > most:
		return nil, damaged("page %d is too long", id)
	}
	for p := id; p <= id+overflow; p++ {
		if c.seen[p] {
			return nil, damaged("page %d is used twice", p)
		}
		c.seen[p] = true
	}
	if overflow > 0 {
		b = append(b, make([]byte, int64(overflow)*size)...)
		if _, err := c.f.ReadAt(b[size:], int64(id+1)*size); err != nil {
			return nil, fmt.Errorf("reading %s: %w: %w", dbName, err, storage.ErrDamaged)
		}
	}
	return b, nil
}

// node checks a branch or leaf page whose keys are from lo to below hi; nil
// is no bound.
func (c *treeCheck) node(id uint64, lo, hi []byte, depth int) error {
	if depth > deepestTree {
		return damaged("page %d lies too deep", id)
	}
	b, err := c.page(id, longestNode)
	if err != nil {
		return err
	}
	return c.elements(id, b, lo, hi, depth)
}

// elements checks what a page holds: in a page of its own, or inline.
func (c *treeCheck) elements(id uint64, b, lo, hi []byte, depth int) error {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != branchFlag && flags != leafFlag || flags == branchFlag && count == 0 {
		return damaged("page %d is of kind %#x", id, flags)
	}
	if pageHead+count*element > len(b) {
		return damaged("page %d holds too much", id)
	}
	keys := make([][]byte, count)
	for i := range keys {
		var ok bool
		if keys[i], _, ok = elementOf(b, i, flags); !ok {
			return damaged("page %d: entry %d lies outside", id, i)
		}
		switch {
		case i > 0 && bytes.Compare(keys[i-1], keys[i]) >= 0,
			flags == leafFlag && bytes.Compare(keys[i], lo) < 0,
			flags == branchFlag && i > 0 && bytes.Compare(keys[i], lo) < 0,
			hi != nil && bytes.Compare(keys[i], hi) >= 0:
			return damaged("page %d: entry %d is out of order", id, i)
		}
	}
	for i, key := range keys {
		next := hi
		if i+1 < count {
			next = keys[i+1]
		}
		if err := c.below(b, i, flags, key, next, depth); err != nil {
			return err
		}
	}
	return nil
}

// below checks what entry i leads to.
func (c *treeCheck) below(b []byte, i int, flags uint16, key, next []byte, depth int) error {
	e := b[pageHead+i*element:]
	if flags == branchFlag {
		return c.node(binary.NativeEndian.Uint64(e[8:]), key, next, depth+1)
	}
	if binary.NativeEndian.Uint32(e)&bucketFlag == 0 {
		return nil
	}
	_, val, _ := elementOf(b, i, flags)
	if len(val) < bucketHead {
		return damaged("a bucket is too short")
	}
	if root := binary.NativeEndian.Uint64(val); root != 0 {
		return c.node(root, nil, nil, depth+1)
	}
	if len(val) < bucketHead+pageHead || depth > deepestTree {
		return damaged("a bucket is too short")
	}
	return c.elements(0, val[bucketHead:], nil, nil, depth+1)
}

// elementOf returns key and value of entry i of a page.
func elementOf(b []byte, i int, flags uint16) (key, val []byte, ok bool) {
	at := uint64(pageHead + i*element)
	e := b[at:]
	u32 := binary.NativeEndian.Uint32
	pos, klen, vlen := uint64(u32(e[4:])), uint64(u32(e[8:])), uint64(u32(e[12:]))
	if flags == branchFlag {
		pos, klen, vlen = uint64(u32(e)), uint64(u32(e[4:])), 0
	}
	end := at + pos + klen + vlen
	if pos < element || end > uint64(len(b)) {
		return nil, nil, false
	}
	return b[at+pos : at+pos+klen], b[at+pos+klen : end], true
}

// freeList checks the list of free pages: none of them is in use.
func (c *treeCheck) freeList() error {
	b, err := c.page(c.m.freelist, int64(c.m.pages+2)*8+int64(c.m.pageSize))
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(b[8:]) != freelistFlag {
		return damaged("the free list is none")
	}
	count, ids := uint64(binary.NativeEndian.Uint16(b[10:])), b[pageHead:]
	if count == 0xFFFF {
		count, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return damaged("the free list is too long")
	}
	for i := range count {
		id := binary.NativeEndian.Uint64(ids[8*i:])
		if id < 2 || id >= c.m.pages || c.seen[id] {
			return damaged("page %d is free and in use, or does not exist", id)
		}
		c.seen[id] = true
	}
	return nil
}

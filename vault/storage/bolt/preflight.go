package bolt

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"

	"github.com/solekey/solekey/vault/storage"
)

// bbolt believes its file and panics where the file lies. Preflight reads what
// bbolt will believe first: both metas and the pages they point at.

const (
	metaAt     = 16 // after the page header
	metaSize   = 64
	metaMagic  = 0xED0CDAED
	metaFormat = 2

	leafFlag     = 0x02
	branchFlag   = 0x01
	freelistFlag = 0x10

	smallestPage = 1 << 10
	greatestPage = 1 << 24
	smallestFile = 4 * smallestPage
)

// meta is one of the two root records of a bbolt file.
type meta struct {
	pageSize                   uint32
	root, freelist, pages, txn uint64
}

// preflight describes what a bbolt file says of itself, once it was found
// sound enough to be opened.
type preflight struct {
	meta     meta
	fellBack bool // one meta is invalid: legal after a crash, a commit may be lost
}

var errForeign = fmt.Errorf("%s is not a solekey store: %w", dbName, storage.ErrDamaged)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", dbName, fmt.Sprintf(format, args...), storage.ErrDamaged)
}

// inspect reads what bbolt needs to open f, and refuses what it would panic
// about. It changes nothing.
func inspect(f *os.File) (preflight, error) {
	info, err := f.Stat()
	if err != nil {
		return preflight{}, err
	}
	size := info.Size()
	if size < smallestFile {
		return preflight{}, fmt.Errorf("%s has %d bytes: %w", dbName, size, errForeign)
	}
	p, err := readMetas(f, size)
	if err != nil {
		return preflight{}, err
	}
	return p, p.meta.check(f, size)
}

// readMetas finds both metas and picks the newer valid one.
func readMetas(f io.ReaderAt, size int64) (preflight, error) {
	first, foreign, err := readMeta(f, 0)
	if err != nil {
		return preflight{}, err
	}
	if first == nil {
		return secondMeta(f, size, foreign)
	}
	second, _, err := readMeta(f, int64(first.pageSize))
	if err != nil {
		return preflight{}, err
	}
	switch {
	case second == nil:
		return preflight{meta: *first, fellBack: true}, nil
	case second.pageSize != first.pageSize: // bbolt would take either at its word
		return preflight{}, damaged("its root records name different page sizes")
	case second.txn > first.txn:
		return preflight{meta: *second}, nil
	}
	return preflight{meta: *first}, nil
}

// secondMeta looks for the second meta of a file whose first one is invalid,
// at every page size there is.
func secondMeta(f io.ReaderAt, size int64, foreign bool) (preflight, error) {
	for page := int64(smallestPage); page <= greatestPage && page < size; page *= 2 {
		m, strange, err := readMeta(f, page)
		if err != nil {
			return preflight{}, err
		}
		if m != nil && int64(m.pageSize) == page {
			return preflight{meta: *m, fellBack: true}, nil
		}
		foreign = foreign && strange
	}
	if foreign {
		return preflight{}, errForeign
	}
	return preflight{}, damaged("both root records are invalid")
}

// readMeta reads the meta of the page at off. It returns nil for an invalid
// one; foreign says that it does not even look like one.
func readMeta(f io.ReaderAt, off int64) (m *meta, foreign bool, err error) {
	var b [metaSize]byte
	if _, err := f.ReadAt(b[:], off+metaAt); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, true, nil
		}
		return nil, false, fmt.Errorf("reading %s: %w: %w", dbName, err, storage.ErrDamaged)
	}
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	if u32(b[0:]) != metaMagic || u32(b[4:]) != metaFormat {
		return nil, true, nil
	}
	sum := fnv.New64a()
	_, _ = sum.Write(b[:56])
	if sum.Sum64() != u64(b[56:]) {
		return nil, false, nil
	}
	return &meta{
		pageSize: u32(b[8:]), root: u64(b[16:]), freelist: u64(b[32:]), pages: u64(b[40:]), txn: u64(b[48:]),
	}, false, nil
}

// check follows the pointers of m.
func (m *meta) check(f *os.File, size int64) error {
	if err := m.checkSize(); err != nil {
		return err
	}
	ps := int64(m.pageSize)
	switch {
	case m.pages < 4 || m.pages > uint64(size/ps):
		return damaged("it was cut: %d pages of %d bytes in %d bytes", m.pages, ps, size)
	case m.freelist == ^uint64(0):
		return errForeign // made without a free list on disk: opening would write
	case m.root < 2 || m.root >= m.pages || m.freelist < 2 || m.freelist >= m.pages || m.root == m.freelist:
		return damaged("its root record points outside")
	}
	if err := m.checkPage(f, m.root, leafFlag, branchFlag); err != nil {
		return err
	}
	return m.checkPage(f, m.freelist, freelistFlag, freelistFlag)
}

// checkFree checks that the free pages exist, in order: bbolt writes to them
// without looking. Whether one is in use, only a look at every page can tell.
// Reading needs none of it.
func (m *meta) checkFree(f io.ReaderAt) error {
	at := int64(m.freelist) * int64(m.pageSize)
	r := bufio.NewReaderSize(io.NewSectionReader(f, at+8, math.MaxInt64-at-8), int(min(m.pageSize, 64<<10)))
	var b [8]byte
	next := func() (uint64, error) {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return 0, fmt.Errorf("reading %s: %w: %w", dbName, err, storage.ErrDamaged)
		}
		return binary.NativeEndian.Uint64(b[:]), nil
	}
	if _, err := next(); err != nil {
		return err
	}
	count := uint64(binary.NativeEndian.Uint16(b[2:]))
	if count == 0xFFFF {
		n, err := next()
		if err != nil {
			return err
		}
		count = n
	}
	for last := uint64(1); count > 0; count-- {
		id, err := next()
		if err != nil {
			return err
		}
		if id <= last || id >= m.pages {
			return damaged("the free list names page %d, which does not exist or is out of order", id)
		}
		last = id
	}
	return nil
}

func (m *meta) checkSize() error {
	if ps := m.pageSize; ps < smallestPage || ps > greatestPage || ps&(ps-1) != 0 {
		return damaged("page size %d", ps)
	}
	return nil
}

// checkPage checks the header of a page: number, kind and that what it holds
// fits.
func (m *meta) checkPage(f *os.File, page uint64, kind, other uint16) error {
	var b [24]byte
	if _, err := f.ReadAt(b[:], int64(page)*int64(m.pageSize)); err != nil {
		return fmt.Errorf("reading %s: %w: %w", dbName, err, storage.ErrDamaged)
	}
	id, flags := binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint16(b[8:])
	count, overflow := uint64(binary.NativeEndian.Uint16(b[10:])), uint64(binary.NativeEndian.Uint32(b[12:]))
	switch {
	case id != page || (flags != kind && flags != other):
		return damaged("page %d is of kind %#x", page, flags)
	case overflow >= m.pages-page:
		return damaged("page %d is too long", page)
	}
	need := count * 16 // elements of leaf and branch pages
	if flags == freelistFlag {
		if count == 0xFFFF {
			count = binary.NativeEndian.Uint64(b[16:]) + 1
		}
		need = count * 8
	}
	if count > m.pages || need > (overflow+1)*uint64(m.pageSize) {
		return damaged("page %d holds too much", page)
	}
	return nil
}

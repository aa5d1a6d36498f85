package vault

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/storage"
)

// A backup file is a chain of frames. Each frame carries the number of its
// place, the ID of its backup, and the hash of everything up to its own end;
// the last one signs that hash. So a file is taken as a whole or not at all,
// and what is wrong with one has a name. Bytes are in docs/SPEC.md.

// Fault is the class of what is wrong with a backup file. Every error about
// such a file wraps one.
type Fault string

// The faults of a backup file.
const (
	FaultNoBackup  Fault = "no_backup" // not the beginning of a backup file
	FaultVersion   Fault = "version"   // of a format that this program does not know
	FaultTruncated Fault = "truncated" // it ends too early
	FaultChanged   Fault = "changed"   // bytes differ from those that were written
	FaultReordered Fault = "reordered" // a part is missing, repeated or moved
	FaultMixed     Fault = "mixed"     // a part is of another backup
	FaultForged    Fault = "forged"    // the signature is not that of the store
	FaultForeign   Fault = "foreign"   // of another store than the key or root at hand
)

var faultWords = map[Fault]string{
	FaultNoBackup:  "it is not a backup file",
	FaultVersion:   "it was written by a later version",
	FaultTruncated: "it is truncated: its end is missing",
	FaultChanged:   "it was changed after it was written",
	FaultReordered: "it is out of order: a part is missing, repeated or moved",
	FaultMixed:     "it is mixed: a part belongs to another backup",
	FaultForged:    "it is forged: the store it names did not sign it",
	FaultForeign:   "it is of another store",
}

// Error returns a sentence that follows the name of the file.
func (f Fault) Error() string { return faultWords[f] }

const (
	skbMagic   = "SOLEKEY-BACKUP\n\x01" // the last byte is the version
	maxFrame   = 1 << 20                // bytes of a body
	sizeFrame  = 4 + 1 + 16 + 4         // number, kind, backup ID, length
	labelFrame = "solekey/v1/backup/frame\x00"
	labelSign  = "solekey/v1/backup\x00"
)

type frameKind uint8

const (
	frameHead frameKind = iota + 1
	frameIdentity
	frameRecords
	frameDone
	frameKeys
	frameLog
	frameEnd
	frameSignature
)

// chain is the running hash over a backup.
type chain [sha256.Size]byte

func firstChain() chain { return sha256.Sum256([]byte(skbMagic)) }

func (c chain) next(head, body []byte) (sum chain) {
	h := sha256.New()
	h.Write([]byte(labelFrame))
	h.Write(c[:])
	h.Write(head)
	h.Write(body)
	h.Sum(sum[:0])
	return sum
}

// signed is what the last frame signs.
func (c chain) signed() []byte { return append([]byte(labelSign), c[:]...) }

type frameWriter struct {
	w       io.Writer
	id      [16]byte
	n       uint32
	chain   chain
	written int64
}

func newFrameWriter(w io.Writer, id [16]byte) (*frameWriter, error) {
	n, err := io.WriteString(w, skbMagic)
	return &frameWriter{w: w, id: id, chain: firstChain(), written: int64(n)}, err
}

func (f *frameWriter) frame(kind frameKind, body []byte) error {
	head := binary.BigEndian.AppendUint32(make([]byte, 0, sizeFrame), f.n)
	head = append(append(head, byte(kind)), f.id[:]...)
	head = binary.BigEndian.AppendUint32(head, uint32(len(body)))
	f.chain = f.chain.next(head, body)
	f.n++
	for _, b := range [][]byte{head, body, f.chain[:]} {
		n, err := f.w.Write(b)
		f.written += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// frame is one frame as it was read. The body is valid until the next one.
type frame struct {
	n      uint32
	kind   frameKind
	body   []byte
	before chain
}

type frameReader struct {
	r     *bufio.Reader
	id    [16]byte // of the first frame
	n     uint32
	chain chain
	read  int64
	buf   []byte
}

func newFrameReader(r io.Reader) (*frameReader, error) {
	f := &frameReader{r: bufio.NewReaderSize(r, 1<<16), chain: firstChain()}
	var magic [len(skbMagic)]byte
	n, err := io.ReadFull(f.r, magic[:])
	f.read = int64(n)
	last := len(magic) - 1
	switch {
	case err != nil && !isEnd(err):
		return nil, err
	case n > 0 && string(magic[:min(n, last)]) == skbMagic[:min(n, last)] && n <= last:
		return nil, FaultTruncated
	case err != nil || string(magic[:last]) != skbMagic[:last]:
		return nil, FaultNoBackup
	case magic[last] != skbMagic[last]:
		return nil, FaultVersion
	}
	return f, nil
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (f *frameReader) full(b []byte) error {
	n, err := io.ReadFull(f.r, b)
	f.read += int64(n)
	if isEnd(err) {
		return FaultTruncated
	}
	return err
}

// next reads a frame and proves its place in the chain.
func (f *frameReader) next() (frame, error) {
	var head [sizeFrame]byte
	if err := f.full(head[:]); err != nil {
		return frame{}, err
	}
	n, kind, id := binary.BigEndian.Uint32(head[:]), frameKind(head[4]), [16]byte(head[5:])
	size := binary.BigEndian.Uint32(head[21:])
	if size > maxFrame {
		return frame{}, FaultChanged
	}
	if uint32(cap(f.buf)) < size {
		f.buf = make([]byte, size)
	}
	body := f.buf[:size]
	var sum chain
	if err := f.full(body); err != nil {
		return frame{}, err
	}
	if err := f.full(sum[:]); err != nil {
		return frame{}, err
	}
	if f.n == 0 {
		f.id = id
	}
	if sum != f.chain.next(head[:], body) || n != f.n || id != f.id {
		return frame{}, f.why(n, id)
	}
	out := frame{n: n, kind: kind, body: body, before: f.chain}
	f.chain = sum
	f.n++
	return out, nil
}

// why names what is wrong with a frame that does not continue the chain.
func (f *frameReader) why(n uint32, id [16]byte) Fault {
	switch {
	case id != f.id:
		return FaultMixed
	case n != f.n:
		return FaultReordered
	}
	return FaultChanged
}

// end wants nothing behind the last frame.
func (f *frameReader) end() error {
	if _, err := f.r.ReadByte(); err == nil {
		return FaultChanged
	} else if !isEnd(err) {
		return err
	}
	return nil
}

// bodyReader takes the fields of a body. Once something is out of order it
// yields zeros, and ok turns false.
type bodyReader struct {
	b   []byte
	bad bool
}

func (r *bodyReader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *bodyReader) fill(p []byte) { copy(p, r.take(len(p))) }

func (r *bodyReader) number(n int) (v uint64) {
	for _, c := range r.take(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *bodyReader) blob(limit int) []byte {
	n := r.number(4)
	if n > uint64(limit) {
		r.bad = true
	}
	return r.take(int(n))
}

// ok reports whether everything was there and nothing trails.
func (r *bodyReader) ok() bool { return !r.bad && len(r.b) == 0 }

// skbHead is the first frame: which store this is a backup of.
type skbHead struct {
	store        identity.ID
	auditPublic  [32]byte
	recoveryHash [32]byte // zeros: the store has no recovery key
	created      uint64   // Unix milliseconds
	record       []byte   // Meta of the store record
}

func (h *skbHead) encode() []byte {
	b := append([]byte(nil), h.store[:]...)
	b = append(append(b, h.auditPublic[:]...), h.recoveryHash[:]...)
	b = binary.BigEndian.AppendUint64(b, h.created)
	return appendBlob(b, h.record)
}

func decodeHead(body []byte) (h skbHead, ok bool) {
	r := bodyReader{b: body}
	r.fill(h.store[:])
	r.fill(h.auditPublic[:])
	r.fill(h.recoveryHash[:])
	h.created = r.number(8)
	h.record = append([]byte(nil), r.blob(storage.MaxMeta)...)
	return h, r.ok() && !h.store.IsZero() && len(h.record) > 0 && h.created < 1<<62
}

// sealed reports whether the store has a recovery key, to which the cells of
// the backup are sealed.
func (h *skbHead) sealed() bool { return h.recoveryHash != [32]byte{} }

func (h *skbHead) fingerprint() identity.ID {
	return seal.FingerprintOf(h.store, h.auditPublic[:], h.recoveryHash)
}

func appendBlob(b, blob []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(blob)))
	return append(b, blob...)
}

func encodeIdentity(id identity.ID, meta []byte) []byte {
	return appendBlob(append([]byte(nil), id[:]...), meta)
}

func decodeIdentity(body []byte) (id identity.ID, meta []byte, ok bool) {
	r := bodyReader{b: body}
	r.fill(id[:])
	meta = r.blob(storage.MaxMeta)
	return id, meta, r.ok() && !id.IsZero() && len(meta) > 0
}

func appendRecord(b []byte, it storage.Item) []byte {
	b = append(append(b, byte(len(it.Key))), it.Key...)
	return appendBlob(b, it.Val)
}

// decodeRecords yields the records of a frame, whose keys must ascend from
// after on. Their values are parts of the body.
func decodeRecords(body []byte, after string, yield func(storage.Item) error) (last string, ok bool, err error) {
	r := bodyReader{b: body}
	for len(r.b) > 0 && !r.bad {
		key := string(r.take(int(r.number(1))))
		val := r.blob(storage.MaxValue)
		if r.bad || key <= after || len(key) > storage.MaxKey {
			return after, false, nil
		}
		after = key
		if err := yield(storage.Item{Key: key, Val: val}); err != nil {
			return after, true, err
		}
	}
	return after, !r.bad, nil
}

// skbEnd counts what the backup holds.
type skbEnd struct {
	identities, records, lines uint64
	head                       [32]byte // hash of the last line of the log
}

func (e *skbEnd) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, e.identities)
	b = binary.BigEndian.AppendUint64(b, e.records)
	b = binary.BigEndian.AppendUint64(b, e.lines)
	return append(b, e.head[:]...)
}

func decodeEnd(body []byte) (e skbEnd, ok bool) {
	r := bodyReader{b: body}
	e.identities, e.records, e.lines = r.number(8), r.number(8), r.number(8)
	r.fill(e.head[:])
	return e, r.ok()
}

// States of a cell in a backup.
const (
	cellLive   = 1
	cellErased = 2
)

type skbCell struct {
	id    identity.ID
	state uint8
	z     storage.Cell
}

// encodeKeys is the plaintext of a frame of keys. Only the first of several
// has root text.
func encodeKeys(root string, cells []skbCell) []byte {
	b := appendBlob(make([]byte, 0, 8+len(root)+49*len(cells)), []byte(root))
	b = binary.BigEndian.AppendUint32(b, uint32(len(cells)))
	for i := range cells {
		b = append(append(b, cells[i].id[:]...), cells[i].state)
		b = append(b, cells[i].z[:]...)
	}
	return b
}

func decodeKeys(pt []byte) (root string, cells []skbCell, ok bool) {
	r := bodyReader{b: pt}
	root = string(r.blob(maxFrame))
	n := r.number(4)
	if n*49 != uint64(len(r.b)) {
		return "", nil, false
	}
	cells = make([]skbCell, n)
	for i := range cells {
		r.fill(cells[i].id[:])
		cells[i].state = uint8(r.number(1))
		r.fill(cells[i].z[:])
		if s := cells[i].state; s != cellLive && s != cellErased {
			return "", nil, false
		}
	}
	return root, cells, r.ok()
}

package vault

import (
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// The codecs of frames of a backup below its seals, for fuzzing.

// ReencodeKeys returns the plaintext of a frame of keys written anew; ok is
// false if b is none.
func ReencodeKeys(b []byte) (again []byte, ok bool) {
	root, cells, ok := decodeKeys(b)
	if !ok {
		return nil, false
	}
	return encodeKeys(root, cells), true
}

// ReencodeFrame returns the body of a frame of this kind written anew; ok is
// false if b is none.
func ReencodeFrame(kind byte, b []byte) (again []byte, ok bool) {
	switch frameKind(kind) {
	case frameHead:
		h, ok := decodeHead(b)
		return h.encode(), ok
	case frameIdentity:
		id, meta, ok := decodeIdentity(b)
		return encodeIdentity(id, meta), ok
	case frameRecords:
		_, ok, err := decodeRecords(b, "", func(it storage.Item) error {
			again = appendRecord(again, it)
			return nil
		})
		return again, ok && err == nil
	case frameEnd:
		e, ok := decodeEnd(b)
		return e.encode(), ok
	}
	return nil, false
}

// ParseRebirth reads the note of a restore's line and returns it written anew.
func ParseRebirth(st *seal.Store, r audit.Record) (again string, ok bool) {
	n, ok := parseRebirth(st, r)
	return n.text(nil), ok
}

// SignRebirth is the note of a restore's line.
func SignRebirth(st *seal.Store, r audit.Record, prev [32]byte) string {
	n := rebirth{backup: [16]byte{1}, broken: 4}
	return n.text(st.Sign(n.signed(st.ID(), r.Seq, prev)))
}

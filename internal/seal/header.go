package seal

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/solekey/solekey/identity"
)

// States of an identity and of its key slots, and the flags of a header.
const (
	StateActive  = 1
	StateRevoked = 2

	FlagShredPending = 1 // the cell is to be erased by whoever sees this
	FlagAuditOwed    = 2 // the last change has no audit line yet
	FlagNoRecovery   = 4 // the recovery key cannot open the identity

	SlotLive   = 1
	SlotClosed = 2
)

// Header is the Meta of an identity: its state, its keys, and the secret from
// which the keys of its records derive. It prints as [redacted].
type Header struct {
	Gen      uint64 // grows by 1 with each commit that changes Meta, from 1
	Seals    uint64 // seals made under the record key
	State    uint8  // StateActive or StateRevoked
	Flags    uint8
	Created  int64 // Unix milliseconds, as all times here
	Changed  int64
	LastOp   uint8    // what the last change was, and
	LastSlot [16]byte // by which key, for an owed audit line
	OK       [32]byte // made once, with the identity; records hang on it
	Count    uint32   // records under Set
	Set      SetHash  // over all records
	PK       []byte   // public key of the mailbox, 1,216 bytes
	Name     string
	Slots    []Slot
	Recovery []byte // from [Inner.WrapRecovery]; empty if there is none
}

// Slot is one key of an identity.
type Slot struct {
	ID       identity.SlotID
	AuthHash [32]byte // see [AuthHash]
	State    uint8    // SlotLive or SlotClosed
	Kind     uint8    // 1
	Scopes   uint16
	Created  int64
	Expires  int64 // 0: never
	Name     string
	Globs    []string // empty: every label
	Wrapped  []byte   // from [Inner.Wrap]; empty once closed or expired
}

const (
	headerFlags  = FlagShredPending | FlagAuditOwed | FlagNoRecovery
	slotKindKey  = 1
	slotScopes   = 1<<5 - 1 // list, read, code, use, write
	maxName      = 63
	maxRecords   = 2 * MaxLabels // an entry and a state each
	sizeSlotMin  = 16 + 32 + 1 + 1 + 2 + 8 + 8 + 1 + 1 + 2
	sizeHeadMin  = 8 + 8 + 1 + 1 + 8 + 8 + 1 + 16 + 32 + 4 + 32 + sizePublicKey + 1 + 1 + 2
	sizeDeadSlot = 16 + 32
)

func (h *Header) fields(w *wire) {
	w.u64(&h.Gen)
	w.check(h.Gen > 0)
	w.u64(&h.Seals)
	w.u8(&h.State)
	w.check(h.State == StateActive || h.State == StateRevoked)
	w.u8(&h.Flags)
	w.check(h.Flags&^headerFlags == 0)
	w.time(&h.Created)
	w.time(&h.Changed)
	w.u8(&h.LastOp)
	w.fixed(h.LastSlot[:])
	w.secret(h.OK[:])
	w.u32(&h.Count)
	w.check(h.Count <= maxRecords)
	w.fixed(h.Set[:])
	w.bytes(&h.PK, sizePublicKey)
	w.str8(&h.Name, 0, maxName)
	n := w.count(len(h.Slots), MaxSlots, sizeSlotMin)
	if !w.writing && n > 0 {
		h.Slots = make([]Slot, n)
	}
	for i := range n {
		h.Slots[i].fields(w)
	}
	w.blob16(&h.Recovery)
	w.check(len(h.Recovery) == 0 || len(h.Recovery) == sizeRecovery)
}

func (s *Slot) fields(w *wire) {
	w.fixed(s.ID[:])
	w.fixed(s.AuthHash[:])
	w.u8(&s.State)
	w.check(s.State == SlotLive || s.State == SlotClosed)
	w.u8(&s.Kind)
	w.check(s.Kind == slotKindKey)
	w.u16(&s.Scopes)
	w.check(s.Scopes&^slotScopes == 0)
	w.time(&s.Created)
	w.time(&s.Expires)
	w.str8(&s.Name, 0, maxName)
	w.strs(&s.Globs, MaxGlobs)
	w.blob16(&s.Wrapped)
	w.check(len(s.Wrapped) == 0 || len(s.Wrapped) == sizeWrapped && s.State == SlotLive)
}

// size is the exact length of the plaintext before padding.
func (h *Header) size() int {
	n := 4 + sizeHeadMin + len(h.Name) + len(h.Recovery)
	for i := range h.Slots {
		s := &h.Slots[i]
		n += sizeSlotMin + len(s.Name) + len(s.Wrapped)
		for _, g := range s.Globs {
			n += 1 + len(g)
		}
	}
	return n
}

func (h *Header) encode() ([]byte, error) {
	size := padHeader(h.size())
	if size < 0 {
		return nil, ErrRefused
	}
	w := framed(size)
	h.fields(w)
	return w.finish(padHeader)
}

func decodeHeader(pt []byte) (*Header, error) {
	body, err := unframe(pt, padHeader)
	if err != nil {
		return nil, err
	}
	h := new(Header)
	w := &wire{b: body}
	h.fields(w)
	if err := w.end(); err != nil {
		return nil, err
	}
	return h, nil
}

// SealHeader seals h under the newest epoch and the cell secret z. It refuses
// a header that OpenHeader would refuse, and one whose plaintext is larger
// than [MaxHeader].
func (s *Store) SealHeader(id identity.ID, z [32]byte, h *Header) ([]byte, error) {
	pt, err := h.encode()
	if err != nil {
		return nil, err
	}
	return s.sealMeta(TypeHeader, aadHeader, id, s.current().headerKey(id, &z), pt), nil
}

// OpenHeader opens what SealHeader made for this identity under z.
func (s *Store) OpenHeader(id identity.ID, z [32]byte, meta []byte) (*Header, error) {
	e, err := s.opener(TypeHeader, meta)
	if err != nil {
		return nil, err
	}
	pt, err := s.openMeta(aadHeader, id, e.headerKey(id, &z), meta)
	if err != nil {
		return nil, err
	}
	return decodeHeader(pt)
}

// Format writes [redacted] for every verb.
func (Header) Format(f fmt.State, _ rune) { io.WriteString(f, redactedText) }

// LogValue returns [redacted].
func (Header) LogValue() slog.Value { return slog.StringValue(redactedText) }

// MarshalText returns [redacted]; JSON uses it too.
func (Header) MarshalText() ([]byte, error) { return []byte(redactedText), nil }

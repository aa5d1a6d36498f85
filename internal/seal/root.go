package seal

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/solekey/solekey/identity"
)

// rootPrefix starts the text of a root secret.
const rootPrefix = "slroot1_"

// maxEpochs bounds how many root secrets live at once; a rotation needs two.
const maxEpochs = 16

// Root is the root material of a store: its ID, the audit seed and the root
// secret of each live epoch. It never changes and prints as [redacted];
// [Root.Reveal] is the way out. The zero Root is of no store: its Epoch is 0.
type Root struct {
	redacted
	_ [0]func()
	// A pointer, because package fmt follows no pointer below the top level: a
	// struct with an unexported Root field prints an address.
	parts *rootParts
}

type rootParts struct {
	store  identity.ID
	shard  uint16
	audit  [sizeKey]byte
	epochs []rootSecret // ascending
}

type rootSecret struct {
	epoch  uint32
	secret [sizeKey]byte
}

// NewRoot makes the root material of a new store, at epoch 1.
func NewRoot() Root {
	p := &rootParts{store: identity.NewID(), epochs: []rootSecret{{epoch: 1}}}
	rand.Read(p.audit[:]) // never fails, see crypto/rand
	rand.Read(p.epochs[0].secret[:])
	return Root{parts: p}
}

// ParseRoot reads root text: one line per live epoch, `EPOCH slroot1_...`, of
// which epoch 0 holds the audit seed. Blank lines and lines that start with #
// are ignored. The order is free; all lines must name one store. An error
// wraps [ErrRefused] and names the line, never its content.
func ParseRoot(text string) (Root, error) {
	p := new(rootParts)
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := p.add(line); err != nil {
			return Root{}, fmt.Errorf("reading root text, line %d: %w", n, err)
		}
	}
	slices.SortFunc(p.epochs, func(a, b rootSecret) int { return cmp.Compare(a.epoch, b.epoch) })
	if len(p.epochs) < 2 || p.epochs[0].epoch != 0 {
		return Root{}, fmt.Errorf("reading root text, epoch 0 and one more are needed: %w", ErrRefused)
	}
	p.audit = p.epochs[0].secret
	p.epochs = p.epochs[1:]
	return Root{parts: p}, nil
}

// add takes one line; the audit seed is an epoch until all are read.
func (p *rootParts) add(line string) error {
	number, text, ok := strings.Cut(line, " ")
	epoch, err := strconv.ParseUint(number, 10, 32)
	if !ok || err != nil || strconv.FormatUint(epoch, 10) != number {
		return ErrRefused
	}
	pub, secret, err := identity.DecodeText(rootPrefix, text)
	if err != nil {
		return ErrRefused
	}
	shard := uint16(pub[1])<<8 | uint16(pub[2])
	store := identity.ID(pub[3:])
	if len(p.epochs) == 0 {
		p.store, p.shard = store, shard
	}
	if p.has(uint32(epoch)) || store.IsZero() || store != p.store || shard != p.shard || len(p.epochs) > maxEpochs {
		return ErrRefused
	}
	p.epochs = append(p.epochs, rootSecret{uint32(epoch), secret})
	return nil
}

// Reveal returns the root text, the lines in order of their epochs; empty for
// the zero Root.
func (r Root) Reveal() string {
	if r.parts == nil {
		return ""
	}
	p := r.parts
	pub := [19]byte{1, byte(p.shard >> 8), byte(p.shard)}
	copy(pub[3:], p.store[:])
	var b strings.Builder
	fmt.Fprintf(&b, "0 %s\n", identity.EncodeText(rootPrefix, pub, p.audit))
	for _, s := range p.epochs {
		fmt.Fprintf(&b, "%d %s\n", s.epoch, identity.EncodeText(rootPrefix, pub, s.secret))
	}
	return b.String()
}

// StoreID returns the ID of the store.
func (r Root) StoreID() identity.ID {
	if r.parts == nil {
		return identity.ID{}
	}
	return r.parts.store
}

// Epoch returns the epoch under which objects are sealed: the highest.
func (r Root) Epoch() uint32 {
	if r.parts == nil {
		return 0
	}
	return r.parts.epochs[len(r.parts.epochs)-1].epoch
}

// Has reports whether objects of the epoch can be opened. A process that
// meets one it cannot open reads its root text again.
func (r Root) Has(epoch uint32) bool {
	return r.parts != nil && r.parts.has(epoch)
}

func (p *rootParts) has(epoch uint32) bool {
	return slices.ContainsFunc(p.epochs, func(s rootSecret) bool { return s.epoch == epoch })
}

// Store derives the keys of the store. It panics on the zero Root.
func (r Root) Store() *Store {
	if r.parts == nil {
		panic("seal: Store of the zero Root")
	}
	p := r.parts
	seed := expand(&p.audit, labelAuditSign, nil)
	s := &Store{
		id:     p.store,
		signer: ed25519.NewKeyFromSeed(seed[:]),
		tagKey: expand(&p.audit, labelAuditLabel, nil),
		epochs: make([]epochKeys, len(p.epochs)),
	}
	clear(seed[:])
	salt := bound(labelStore, p.store[:])
	for i, e := range p.epochs {
		prk := extract(e.secret[:], salt)
		s.epochs[i] = epochKeys{epoch: e.epoch, prk: prk, record: expand(&prk, labelRecord, nil)}
	}
	return s
}

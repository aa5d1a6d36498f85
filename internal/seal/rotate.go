package seal

import (
	"crypto/rand"
	"crypto/subtle"
	"slices"
)

// Next returns r with one more epoch, whose fresh root secret is the one to
// seal under. It panics on the zero Root.
func (r Root) Next() Root {
	if r.parts == nil {
		panic("seal: Next of the zero Root")
	}
	p := *r.parts
	p.epochs = append(slices.Clone(p.epochs), rootSecret{epoch: r.Epoch() + 1})
	rand.Read(p.epochs[len(p.epochs)-1].secret[:]) // never fails, see crypto/rand
	return Root{parts: &p}
}

// Newest returns r with the root secret of its newest epoch alone. What an
// older epoch sealed does not open with it.
func (r Root) Newest() Root {
	if r.parts == nil {
		return r
	}
	p := *r.parts
	p.epochs = slices.Clone(p.epochs[len(p.epochs)-1:])
	return Root{parts: &p}
}

// Oldest returns the lowest epoch that can be opened; 0 for the zero Root.
func (r Root) Oldest() uint32 {
	if r.parts == nil {
		return 0
	}
	return r.parts.epochs[0].epoch
}

// Same reports whether r and o hold the same root material.
func (r Root) Same(o Root) bool {
	return subtle.ConstantTimeCompare([]byte(r.Reveal()), []byte(o.Reveal())) == 1
}

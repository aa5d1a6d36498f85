package vault

import (
	"errors"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// ask is what a call wants. A zero scope asks for nothing but to be known.
type ask struct {
	event audit.Event
	scope identity.Scope
	label Label     // empty: none
	tag   audit.Tag // of label
	field string    // of the entry, for a read
	totp  bool      // the code of the entry, not a field
}

// ruling is what the judge found. A ruling without refusal names the slot
// and, if a label was asked for, its entry.
type ruling struct {
	slot    *seal.Slot  // nil: the key proves nothing here
	entry   *seal.Entry // nil with a refusal, or without a label
	refusal *Refusal
}

// judge decides on a call from what was loaded, the key, the request and the
// time, and from nothing else. It opens no value.
func judge(v *view, key identity.Key, a ask, now time.Time) ruling {
	if v.tomb != nil {
		return judgeTombstone(v.tomb, key)
	}
	slot := findSlot(v.head, key)
	if slot == nil || v.rev == 0 {
		return ruling{refusal: errUnauthorized}
	}
	r := ruling{slot: slot}
	if v.head.State != seal.StateActive || slot.State != seal.SlotLive {
		r.refusal = errRevoked
		return r
	}
	grant := grantOf(slot)
	err := grant.Check(now, a.scope)
	if a.scope == 0 && errors.Is(err, identity.ErrForbidden) {
		err = nil
	}
	if err != nil {
		r.refusal = Refuse(err)
		return r
	}
	if a.label == "" {
		return r
	}
	r.entry, r.refusal = judgeEntry(v, grant, a, now)
	return r
}

// findSlot returns the slot that key proves itself to, nil if there is none.
func findSlot(h *seal.Header, key identity.Key) *seal.Slot {
	id, auth := key.Slot(), seal.AuthHash(key.Auth())
	var found *seal.Slot
	for i := range h.Slots {
		s := &h.Slots[i]
		if s.ID == id && seal.Equal(s.AuthHash, auth) {
			found = s
		}
	}
	return found
}

func judgeTombstone(t *seal.Tombstone, key identity.Key) ruling {
	id, auth := key.Slot(), seal.AuthHash(key.Auth())
	for _, s := range t.Slots {
		if s.ID == id && seal.Equal(s.AuthHash, auth) {
			return ruling{slot: &seal.Slot{ID: s.ID}, refusal: errRevoked}
		}
	}
	return ruling{refusal: errUnauthorized}
}

// judgeEntry decides on one label. A label that is absent, removed or outside
// the globs of the key gives the same refusal.
func judgeEntry(v *view, grant identity.Grant, a ask, now time.Time) (*seal.Entry, *Refusal) {
	e, err := v.entry(a.label, a.tag)
	if err != nil {
		return nil, Refuse(err)
	}
	if e == nil || e.Form == formNone || !grant.Covers(string(a.label)) {
		return nil, errNoLabel(a.label)
	}
	if e.Expires != 0 && now.UnixMilli() >= e.Expires {
		return nil, refuse(Expired, fmt.Sprintf("%s expired on %s.", a.label, fromMillis(e.Expires).Format(time.DateOnly)), "Ask the owner to store it again.")
	}
	if a.totp {
		if EntryKind(e.Kind) != KindTOTP {
			return nil, refuse(Forbidden, fmt.Sprintf("%s holds no TOTP seed.", a.label), fmt.Sprintf("Call get_secret with label %s.", a.label))
		}
		return e, nil
	}
	if a.event != audit.Get {
		return e, nil
	}
	return judgeExposure(e, a.label)
}

func judgeExposure(e *seal.Entry, l Label) (*seal.Entry, *Refusal) {
	if EntryKind(e.Kind) == KindTOTP {
		return nil, refuse(Forbidden, fmt.Sprintf("%s holds a TOTP seed; seeds never leave the vault.", l), fmt.Sprintf("Call get_totp_code with label %s.", l))
	}
	switch exposureOf(e) {
	case ExposeReveal:
		return e, nil
	case ExposeUse:
		return nil, refuse(Forbidden, fmt.Sprintf("%s may be used but not read.", l), "Ask the owner: only the owner can store it again with exposure reveal.")
	}
	return nil, refuse(Forbidden, fmt.Sprintf("%s never leaves the vault.", l), "Do without it, or ask the owner.")
}

// exposureOf is the stricter of the sealed exposure and the owner's cap.
func exposureOf(e *seal.Entry) Exposure { return Exposure(max(e.Exposure, e.Cap)) }

func errNoLabel(l Label) *Refusal {
	return refuse(NotFound, fmt.Sprintf("No label %s for this key.", l), "list_labels shows the labels of this key.")
}

func grantOf(s *seal.Slot) identity.Grant {
	g := identity.Grant{Scopes: identity.Scopes(s.Scopes), Expires: fromMillis(s.Expires)}
	for _, glob := range s.Globs {
		g.Globs = append(g.Globs, identity.Glob(glob))
	}
	return g
}

// Forms of the inner bytes of an entry.
const (
	formNone    = 0 // removed: the version counter goes on
	formSealed  = 1 // under the vault key
	formMailbox = 2 // to the public key: put by the owner, not yet read
)

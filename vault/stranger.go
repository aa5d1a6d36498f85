package vault

import (
	"sync"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// A key that matches no slot proves nothing: nobody waits for its line, and a
// flood of such keys makes one line per source and second.
const (
	strangerPause = time.Second
	maxStrangers  = 32 // sources counted apart; the others share one line
)

type strangers struct {
	mu     sync.Mutex
	counts map[Source]int
	last   time.Time
}

func (s *strangers) count(from Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(from, 1)
}

// add counts n attempts. The caller holds mu.
func (s *strangers) add(from Source, n int) {
	if s.counts == nil {
		s.counts = make(map[Source]int)
	}
	if _, known := s.counts[from]; !known && len(s.counts) >= maxStrangers {
		from = Source{Via: from.Via, Addr: "others"}
	}
	s.counts[from] += n
}

// take returns the lines that are due, or all of them.
func (s *strangers) take(now time.Time, all bool) ([]audit.Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.counts) == 0 || (!all && now.Sub(s.last) < strangerPause && !now.Before(s.last)) {
		return nil, false
	}
	recs := make([]audit.Record, 0, len(s.counts))
	for src, n := range s.counts {
		recs = append(recs, audit.Record{Time: now, Event: audit.Auth, Denied: true, Why: string(Unauthorized), Via: src.Via, From: src.Addr, N: n})
	}
	clear(s.counts)
	s.last = now
	return recs, true
}

// giveBack counts again what could not be written. It keeps to the same room:
// a log that cannot be written for a day must not gather the sources of a day.
func (s *strangers) giveBack(recs []audit.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range recs {
		s.add(Source{Via: r.Via, Addr: r.From}, r.N)
	}
}

// decoy is a sealed header that no key opens. For an ID that does not exist
// it is opened and compared in place of the missing one, so that an unknown
// ID costs what a wrong key costs.
type decoy struct {
	id   identity.ID
	cell [32]byte
	meta []byte
}

func newDecoy(st *seal.Store) (decoy, error) {
	d := decoy{id: identity.NewID(), cell: random32()}
	key := identity.NewKey(identity.Agent, d.id)
	inner := seal.NewInner(st.ID(), d.id)
	defer inner.Wipe()
	slot, err := newSlot(inner, key, "", identity.Grant{Scopes: identity.DefaultScopes}, time.Unix(0, 0))
	if err != nil {
		return decoy{}, err
	}
	h := &seal.Header{Gen: 1, State: seal.StateActive, OK: random32(), PK: inner.PublicKey(), Name: "decoy", Slots: []seal.Slot{slot}}
	d.meta, err = st.SealHeader(d.id, d.cell, h)
	return d, err
}

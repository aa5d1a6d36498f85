package mcp

import (
	"context"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// How much one identity, one key that opens nothing, one address and all
// together may ask of the endpoint. Everything here is bounded: by proven
// identities, or by a number.

const (
	maxRunningOfOne = 128 // requests that are read or answered, of one identity
	maxRunningOfAll = 1024
	fairShare       = 16      // of one identity, once half of maxRunningOfAll is taken
	sizePerRequest  = 4 << 10 // bytes of a body that count as one more request
	partsPerRequest = 64      // values in it that do
	maxStreamsOfOne = 8       // event streams open, of one identity
	maxStreamsOfAll = 1024
	failedRate      = 10 // failures per second, of one key from one address
	failedBurst     = 50
	addressRate     = 200 // failures per second, of all keys from one address
	addressBurst    = 1000
	maxBuckets      = 4096 // of a kind
	maxProven       = 4096
	maxQuotas       = 4096 // kept before idle ones are dropped
	quotaIdle       = time.Minute
	requestsByCall  = 5
	burstByRate     = 4
)

// limits are those of one endpoint.
type limits struct {
	rate rate.Limit // tool calls per second and identity

	mu        sync.Mutex
	running   int // requests
	quotas    map[identity.ID]*quota
	addresses *buckets[netip.Prefix]    // keys that opened nothing, by where they come from
	strangers *buckets[origin]          // the same, each by itself
	closed    *buckets[identity.SlotID] // revoked and expired keys; each attempt is a line of the log
	trials    map[origin]*trial         // of keys that are neither
	proven    map[identity.SlotID]struct{}
}

func newLimits(perSecond int) *limits {
	l := &limits{
		rate:      rate.Limit(perSecond),
		quotas:    map[identity.ID]*quota{},
		addresses: newBuckets[netip.Prefix](addressRate, addressBurst),
		strangers: newBuckets[origin](failedRate, failedBurst),
		closed:    newBuckets[identity.SlotID](failedRate, failedBurst),
		trials:    map[origin]*trial{},
		proven:    map[identity.SlotID]struct{}{},
	}
	switch {
	case perSecond == 0:
		l.rate = DefaultRate
	case perSecond < 0:
		l.rate = rate.Inf
	}
	return l
}

// quota is what one identity may ask.
type quota struct {
	requests, calls *rate.Limiter

	// Guarded by limits.mu.
	running int // requests
	streams int
	seen    time.Time
}

// of returns the quota of a proven identity.
func (l *limits) of(id identity.ID, now time.Time) *quota {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.quotas[id]
	if q == nil {
		if len(l.quotas) >= maxQuotas {
			l.dropIdle(now)
		}
		burst := int(burstByRate * min(l.rate, 1<<20))
		q = &quota{
			requests: rate.NewLimiter(requestsByCall*l.rate, requestsByCall*burst),
			calls:    rate.NewLimiter(l.rate, burst),
		}
		l.quotas[id] = q
	}
	q.seen = now
	return q
}

// dropIdle forgets identities that have been away long enough for a full
// burst to be theirs again.
func (l *limits) dropIdle(now time.Time) {
	for id, q := range l.quotas {
		if q.streams == 0 && q.running == 0 && now.Sub(q.seen) > quotaIdle {
			delete(l.quotas, id)
		}
	}
}

// take spends n of a rate, or returns when they will be there. More than a
// burst is a burst.
func take(l *rate.Limiter, now time.Time, n int) (wait time.Duration) {
	n = min(n, l.Burst())
	if l.AllowN(now, n) {
		return 0
	}
	r := l.ReserveN(now, n)
	defer r.CancelAt(now)
	return max(r.DelayFrom(now), time.Millisecond)
}

// tooFast is the refusal of what is over a limit.
func tooFast(what string, wait time.Duration) *vault.Refusal {
	return &vault.Refusal{Word: vault.RateLimited, Message: what, Hint: "Repeat this call after the wait.", RetryAfter: max(wait, 10*time.Millisecond)}
}

// begin admits one request, before its body is read: what waits and what runs
// is memory. When half of the room is taken, those who have much get no more.
// The caller calls end when it is answered.
func (l *limits) begin(q *quota) (end func(), d *denial) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.running >= maxRunningOfOne || l.running >= maxRunningOfAll/2 && q.running >= fairShare || l.running >= maxRunningOfAll {
		return nil, &denial{http.StatusTooManyRequests, tooFast("Too many requests are running.", 250*time.Millisecond)}
	}
	q.running++
	l.running++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		q.running--
		l.running--
	}, nil
}

// weigh counts what a request brought.
func (q *quota) weigh(text []byte, now time.Time) *denial {
	_, parts := shape(text)
	if n := len(text)/sizePerRequest + parts/partsPerRequest; n > 0 {
		if wait := take(q.requests, now, n); wait > 0 {
			return &denial{http.StatusTooManyRequests, tooFast("This identity sends too much.", wait)}
		}
	}
	return nil
}

// call admits one tool call; a nil quota admits every one.
func (q *quota) call(now time.Time) error {
	if q == nil {
		return nil
	}
	if wait := take(q.calls, now, 1); wait > 0 {
		return tooFast("This identity makes too many calls.", wait)
	}
	return nil
}

// stream admits one event stream of q, or reports that there are enough.
func (l *limits) stream(q *quota) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.streams >= maxStreamsOfOne {
		return false
	}
	q.streams++
	return true
}

func (l *limits) endStream(q *quota) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.streams--
}

// network is what counts as one address: of IPv4 all bits, of IPv6 the
// subnet, which one customer has whole.
func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// buckets are token buckets by what requests have in common. There is room
// for so many; what finds none has no limit.
type buckets[K comparable] struct {
	rate  rate.Limit
	burst int
	of    map[K]*rate.Limiter
	swept time.Time // when full buckets were last dropped
}

func newBuckets[K comparable](perSecond rate.Limit, burst int) *buckets[K] {
	return &buckets[K]{rate: perSecond, burst: burst, of: map[K]*rate.Limiter{}}
}

// get returns the bucket of k; nil if there is no limit.
func (b *buckets[K]) get(k K, now time.Time) *rate.Limiter {
	if l := b.of[k]; l != nil {
		return l
	}
	if len(b.of) >= maxBuckets && now.Sub(b.swept) >= time.Second {
		b.swept = now
		for k, l := range b.of {
			if l.TokensAt(now) >= float64(b.burst) {
				delete(b.of, k)
			}
		}
	}
	if len(b.of) >= maxBuckets {
		return nil
	}
	l := rate.NewLimiter(b.rate, b.burst)
	b.of[k] = l
	return l
}

// origin is a key from somewhere. A text that is no key has the zero slot.
type origin struct {
	net  netip.Prefix
	slot identity.SlotID
}

// attempt is a key that may be tried. What it took from the limits of failures
// is theirs until it proves itself.
type attempt struct {
	at    time.Time
	from  origin
	taken []*rate.Reservation
	trial *trial // nil: nobody waits for it
}

func (a *attempt) take(l *rate.Limiter) bool {
	if l == nil {
		return true
	}
	r := l.ReserveN(a.at, 1)
	if r.DelayFrom(a.at) > 0 {
		r.CancelAt(a.at)
		return false
	}
	a.taken = append(a.taken, r)
	return true
}

func (a *attempt) giveBack() {
	for _, r := range a.taken {
		r.CancelAt(a.at)
	}
}

// trial is a key that is being proved, by so many requests at once.
type trial struct {
	running int
	ended   chan struct{} // closed when the next one has
}

// try admits a key to be proved, unless it failed too often, or too many
// others from its address did. A key that has proved itself to this server is
// not held up by its address, which behind a proxy may be everybody's; and of
// the many requests of a key that nobody has tried, the later ones wait for
// what the first ones prove. The caller calls done.
func (l *limits) try(ctx context.Context, from origin, now time.Time) (a attempt, ok bool) {
	for {
		a, wait, ok := l.tryNow(from, now)
		if ok || wait == nil {
			return a, ok
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return a, false
		}
	}
}

// tryNow is try without waiting: it returns what there is to wait for.
func (l *limits) tryNow(from origin, now time.Time) (a attempt, wait <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.at, a.from = now, from
	if closed := l.closed.of[from.slot]; closed != nil {
		ok = a.take(closed)
		return a, nil, ok
	}
	if _, known := l.proven[from.slot]; known {
		return a, nil, true
	}
	t := l.trials[from]
	if !a.take(l.addresses.get(from.net, now)) || !a.take(l.strangers.get(from, now)) {
		a.giveBack()
		if t == nil {
			return a, nil, false
		}
		return a, t.ended, false
	}
	if t == nil {
		t = &trial{ended: make(chan struct{})}
		l.trials[from] = t
	}
	t.running++
	a.trial = t
	return a, nil, true
}

// done ends an attempt, however it went.
func (l *limits) done(a attempt) {
	t := a.trial
	if t == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(t.ended)
	t.ended = make(chan struct{})
	if t.running--; t.running == 0 {
		delete(l.trials, a.from)
	}
}

// spent counts an attempt with a closed key. Only its holder is told that it
// is closed, and only its holder waits: others at that address may have the
// next key.
func (l *limits) spent(a attempt, slot identity.SlotID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.proven, slot)
	if l.closed.of[slot] != nil {
		return // it has paid there, unless it was under way before the first one came back
	}
	if own := l.closed.get(slot, a.at); own != nil { // else it counts as a stranger
		a.giveBack()
		own.AllowN(a.at, 1)
	}
}

// success remembers that a key proved itself. It opens nothing: the next
// request proves it again.
func (l *limits) success(slot identity.SlotID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.proven[slot]; ok {
		return
	}
	if len(l.proven) >= maxProven {
		clear(l.proven)
	}
	l.proven[slot] = struct{}{}
}

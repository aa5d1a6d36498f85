package mcp

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// How much one identity, one address and all together may ask of the
// endpoint. Everything here is bounded: by proven identities, or by a number.

const (
	maxCallsOfOne  = 128 // tool calls running, of one identity
	maxCallsOfAll  = 1024
	maxStreamsOne  = 8 // event streams open, of one identity
	maxStreamsAll  = 1024
	failedRate     = 10 // failed keys per second and address
	failedBurst    = 50
	maxAddresses   = 4096
	maxProven      = 4096
	maxQuotas      = 4096 // kept before idle ones are dropped
	quotaIdle      = time.Minute
	requestsByCall = 5
	burstByRate    = 4
)

// limits are those of one endpoint.
type limits struct {
	rate  rate.Limit // tool calls per second and identity
	calls chan struct{}

	mu     sync.Mutex
	quotas map[identity.ID]*quota
	failed map[netip.Prefix]*rate.Limiter
	others *rate.Limiter // of the addresses that failed has no room for
	proven map[identity.SlotID]struct{}
}

func newLimits(perSecond int) *limits {
	l := &limits{
		rate:   rate.Limit(perSecond),
		calls:  make(chan struct{}, maxCallsOfAll),
		quotas: map[identity.ID]*quota{},
		failed: map[netip.Prefix]*rate.Limiter{},
		others: rate.NewLimiter(failedRate, failedBurst),
		proven: map[identity.SlotID]struct{}{},
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
	running         chan struct{} // tool calls
	all             chan struct{} // tool calls of everybody
	streams         int           // guarded by limits.mu
	seen            time.Time     // guarded by limits.mu
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
			running:  make(chan struct{}, maxCallsOfOne),
			all:      l.calls,
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
		if q.streams == 0 && len(q.running) == 0 && now.Sub(q.seen) > quotaIdle {
			delete(l.quotas, id)
		}
	}
}

// take spends one of a rate, or returns when there will be one.
func take(l *rate.Limiter, now time.Time) (wait time.Duration) {
	if l.AllowN(now, 1) {
		return 0
	}
	r := l.ReserveN(now, 1)
	defer r.CancelAt(now)
	return max(r.DelayFrom(now), time.Millisecond)
}

// tooFast is the refusal of what is over a limit.
func tooFast(what string, wait time.Duration) *vault.Refusal {
	return &vault.Refusal{Word: vault.RateLimited, Message: what, Hint: "Repeat this call after the wait.", RetryAfter: max(wait, 10*time.Millisecond)}
}

// begin admits one tool call; a nil quota admits every one. The caller calls
// end when it is done.
func (q *quota) begin(now time.Time) (end func(), err error) {
	if q == nil {
		return func() {}, nil
	}
	if wait := take(q.calls, now); wait > 0 {
		return nil, tooFast("This identity makes too many calls.", wait)
	}
	select {
	case q.running <- struct{}{}:
	default:
		return nil, tooFast("Too many calls of this identity are running.", 250*time.Millisecond)
	}
	select {
	case q.all <- struct{}{}:
	default:
		<-q.running
		return nil, tooFast("The endpoint is serving as many calls as it can.", 250*time.Millisecond)
	}
	return func() { <-q.all; <-q.running }, nil
}

// stream admits one event stream of q, or reports that there are enough.
func (l *limits) stream(q *quota) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.streams >= maxStreamsOne {
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

// network is what counts as one address: all of IPv4, the subnet of IPv6,
// which one customer has whole.
func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap(); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// barred returns how long the address of too many failed keys has to wait. A
// key that has proved itself and not failed since is not held up by what else
// comes from its address: behind a proxy that may be anybody.
func (l *limits) barred(from netip.Addr, slot identity.SlotID, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket := l.failed[network(from)]
	if bucket == nil && len(l.failed) >= maxAddresses {
		bucket = l.others
	}
	if bucket == nil || bucket.TokensAt(now) >= 1 {
		return 0
	}
	if _, ok := l.proven[slot]; ok {
		return 0
	}
	return time.Second
}

// failure counts a key that failed.
func (l *limits) failure(from netip.Addr, slot identity.SlotID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.proven, slot)
	net := network(from)
	bucket := l.failed[net]
	if bucket == nil {
		if len(l.failed) >= maxAddresses {
			l.dropCalm(now)
		}
		bucket = l.others
		if len(l.failed) < maxAddresses {
			bucket = rate.NewLimiter(failedRate, failedBurst)
			l.failed[net] = bucket
		}
	}
	bucket.AllowN(now, 1)
}

// dropCalm forgets addresses whose burst is theirs again.
func (l *limits) dropCalm(now time.Time) {
	for net, b := range l.failed {
		if b.TokensAt(now) >= failedBurst {
			delete(l.failed, net)
		}
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

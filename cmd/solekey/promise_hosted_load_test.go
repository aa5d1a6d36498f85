package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// shot is one call of the load.
type shot struct {
	who          int // whose key
	begun, ended time.Time
	value        string // empty: none came
	said         string // what came instead
	stream       bool   // on an event stream
}

// span is how long a command took.
type span struct{ begun, ended time.Time }

// judgeShots returns the calls that got a value although they began after the
// revocation of their key had returned, those that failed although their key
// was not being revoked, and those that got somebody else's value.
func judgeShots(shots []shot, revoked map[int]span, value func(who int) string) (late, broken, foreign []shot) {
	for _, s := range shots {
		end, ended := revoked[s.who]
		if s.value != "" && s.value != value(s.who) {
			foreign = append(foreign, s)
		}
		if s.value != "" && ended && s.begun.After(end.ended) {
			late = append(late, s)
		}
		if s.value == "" && (!ended || s.ended.Before(end.begun)) {
			broken = append(broken, s)
		}
	}
	return late, broken, foreign
}

// TestLateValuesAreSeen is the control of TestRevokeHoldsUnderLoad: the judge
// finds each offence that is planted, and nothing else.
func TestLateValuesAreSeen(t *testing.T) {
	t.Parallel()
	t0 := time.Now()
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	value := func(who int) string { return fmt.Sprint("value of ", who) }
	revoked := map[int]span{1: {at(100), at(120)}}
	for _, c := range []struct {
		name                  string
		s                     shot
		late, broken, foreign int
	}{
		{"before", shot{1, at(10), at(11), value(1), "", false}, 0, 0, 0},
		{"begun before it returned, answered after", shot{1, at(119), at(300), value(1), "", false}, 0, 0, 0},
		{"begun after it returned", shot{1, at(121), at(122), value(1), "", false}, 1, 0, 0},
		{"refused after", shot{1, at(121), at(122), "", "401", false}, 0, 0, 0},
		{"refused while it ran", shot{1, at(95), at(105), "", "401", false}, 0, 0, 0},
		{"refused before it began", shot{1, at(90), at(99), "", "401", false}, 0, 1, 0},
		{"another key refused", shot{2, at(121), at(122), "", "429", false}, 0, 1, 0},
		{"another key served", shot{2, at(121), at(122), value(2), "", false}, 0, 0, 0},
		{"somebody else's value", shot{2, at(10), at(11), value(1), "", false}, 0, 0, 1},
	} {
		late, broken, foreign := judgeShots([]shot{c.s}, revoked, value)
		if len(late) != c.late || len(broken) != c.broken || len(foreign) != c.foreign {
			t.Errorf("%s: late %d, broken %d, foreign %d, want %d, %d, %d", c.name, len(late), len(broken), len(foreign), c.late, c.broken, c.foreign)
		}
	}
}

// TestRevokeHoldsUnderLoad revokes identities and keys one after the other, in
// processes of their own, while two servers of the store answer many clients:
// no call that begins once revoke has returned gets a value, in either
// process; the event streams of the key end; and nobody else notices.
func TestRevokeHoldsUnderLoad(t *testing.T) {
	t.Parallel()
	b := newBattle(t, rounds(16, 24, 120), rounds(8, 14, 100))
	b.begin(64, rounds(300, 400, 1100))
	b.revokeAll(time.Duration(rounds(100, 100, 50)) * time.Millisecond)
	b.end()
	b.judge()
	b.control()
}

// battle is the load of TestRevokeHoldsUnderLoad.
type battle struct {
	*world
	hosts  [2]*hosted
	keys   []string
	ids    []string // of the keys
	doomed []int    // in the order of their end

	stop    chan struct{}
	clients sync.WaitGroup
	ended   []atomic.Bool // whose revocation has begun

	mu      sync.Mutex
	shots   []shot
	streams []shot // whose value is empty; ended is when the stream did
	revoked map[int]span
	moves   int
}

func battleName(i int) string  { return fmt.Sprintf("bot-%d", i) }
func battleValue(i int) string { return fmt.Sprintf("CANARY-of-bot-%d", i) }

// newBattle makes identities and shows each key to both servers, so that none
// is a stranger's when others fail.
func newBattle(t *testing.T, identities, ends int) *battle {
	if runtime.GOOS == "windows" {
		t.Skip("SIGTERM is of Unix")
	}
	b := &battle{world: newWorld(t), stop: make(chan struct{}), revoked: map[int]span{}, ended: make([]atomic.Bool, identities)}
	for i := range identities {
		var made struct {
			Key string `json:"key"`
			ID  string `json:"key_id"`
		}
		out := b.must("identity", "create", battleName(i), "--print-key", "--json")
		if err := json.Unmarshal([]byte(out.stdout), &made); err != nil || made.Key == "" {
			t.Fatalf("identity create --json: %v", out)
		}
		b.put(battleName(i), "TOKEN", battleValue(i))
		b.keys, b.ids = append(b.keys, made.Key), append(b.ids, made.ID)
	}
	b.doomed = seeded(t).Perm(identities)[:ends]
	for n := range b.hosts {
		b.hosts[n] = b.host(setting{}, "--listen", "127.0.0.1:0")
		for i, key := range b.keys {
			if err := fetchSecret(newAgent(b.hosts[n], key).client, b.hosts[n].url, key, "TOKEN", battleValue(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b
}

// begin starts clients that make so many calls per second together.
func (b *battle) begin(clients, perSecond int) {
	pace := time.Duration(clients) * time.Second / time.Duration(perSecond)
	for n := range clients {
		c := &fighter{battle: b, host: b.hosts[n%2], who: n % len(b.keys), way: n % 3, pace: pace, rand: rand.New(rand.NewPCG(uint64(n), 1))}
		b.clients.Go(c.run)
	}
}

// fighter is one client of a battle.
type fighter struct {
	*battle
	host   *hosted
	who    int
	way    int // 0: legacy, 1: modern, 2: event stream
	pace   time.Duration
	rand   *rand.Rand
	agent  *agent
	stream *session
	opened time.Time
	shots  []shot
	ends   []shot
}

// run calls at its pace. When its key is refused it asks some more times, then
// goes on as somebody else.
func (c *fighter) run() {
	c.agent = newAgent(c.host, c.keys[c.who])
	defer c.report()
	next := time.Now().Add(time.Duration(c.rand.Int64N(int64(c.pace))))
	for refused := 0; ; {
		select {
		case <-c.stop:
			return
		case <-time.After(time.Until(next)):
		}
		if next = next.Add(c.pace); time.Until(next) < -c.pace {
			next = time.Now() // it is behind, and does not catch up
		}
		if c.call() {
			refused = 0
		} else if refused++; refused >= 8 {
			refused = 0
			c.move()
		}
	}
}

// call makes one call and reports whether a value came.
func (c *fighter) call() bool {
	s := shot{who: c.who, stream: c.way == 2, begun: time.Now()}
	r, err := c.ask()
	s.ended, s.value = time.Now(), r.text("value")
	if s.value == "" {
		s.said = fmt.Sprintf("way %d: %s, %v", c.way, r.said(), err)
	}
	c.shots = append(c.shots, s)
	return s.value != ""
}

func (c *fighter) ask() (reply, error) {
	switch c.way {
	case 0:
		return c.agent.legacy(context.Background(), "TOKEN")
	case 1:
		return c.agent.modern(context.Background(), "TOKEN")
	}
	if c.stream == nil {
		stream, r, err := c.agent.open()
		if stream == nil {
			return r, err
		}
		c.stream, c.opened = stream, time.Now()
	}
	r, err := c.stream.get(context.Background(), "TOKEN")
	if !c.stream.alive() {
		c.streamEnded()
		if c.rand.IntN(2) == 0 {
			c.stream = nil // else it goes on asking for the session that was
		}
	}
	return r, err
}

// streamEnded notes when a stream ended by itself, once.
func (c *fighter) streamEnded() {
	if !c.opened.IsZero() {
		c.ends = append(c.ends, shot{who: c.who, begun: c.opened, ended: c.stream.ended, said: "the event stream ended"})
		c.opened = time.Time{}
	}
}

// move takes another identity, one that nobody revokes yet.
func (c *fighter) move() {
	c.leave()
	for {
		if who := c.rand.IntN(len(c.keys)); !c.ended[who].Load() {
			c.who = who
			break
		}
	}
	c.agent = newAgent(c.host, c.keys[c.who])
	c.mu.Lock()
	c.moves++
	c.mu.Unlock()
}

// leave waits for the stream of a revoked key, which ends by itself, and
// closes one that is alive.
func (c *fighter) leave() {
	if s := c.stream; s != nil {
		if c.ended[c.who].Load() {
			select {
			case <-s.over:
			case <-time.After(patience):
			}
		}
		if !s.alive() {
			c.streamEnded()
		}
		s.close()
		c.stream, c.opened = nil, time.Time{}
	}
	c.agent.close()
}

func (c *fighter) report() {
	c.leave()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.battle.shots = append(c.battle.shots, c.shots...)
	c.battle.streams = append(c.battle.streams, c.ends...)
}

// revokeAll ends the doomed, one process each.
func (b *battle) revokeAll(pause time.Duration) {
	time.Sleep(5 * pause) // the load, as it was before
	for n, who := range b.doomed {
		args := []string{"identity", "revoke", battleName(who), "--yes"}
		if n%2 == 1 {
			args = []string{"key", "revoke", battleName(who), b.ids[who], "--yes"}
		}
		b.ended[who].Store(true)
		begun := time.Now()
		out := b.run(args...)
		ended := time.Now()
		if out.code != 0 {
			b.t.Errorf("solekey %q: %v", args, out)
		}
		b.mu.Lock()
		b.revoked[who] = span{begun, ended}
		b.mu.Unlock()
		time.Sleep(pause) // the pace of the revocations
	}
	time.Sleep(max(time.Second, 5*pause)) // the load, as it is afterwards
}

func (b *battle) end() {
	close(b.stop)
	b.clients.Wait()
	for _, h := range b.hosts {
		h.stop()
	}
}

func (b *battle) judge() {
	late, broken, foreign := judgeShots(b.shots, b.revoked, battleValue)
	_, cut, _ := judgeShots(b.streams, b.revoked, battleValue)
	cut = append(cut, slices.DeleteFunc(slices.Clone(broken), func(s shot) bool { return !s.stream })...)
	broken = slices.DeleteFunc(broken, func(s shot) bool { return s.stream })
	if len(cut) > 0 {
		b.t.Errorf("%d event streams and calls on them ended though nobody revoked their key, such as %s: %s", len(cut), battleName(cut[0].who), cut[0].said)
	}
	for what, bad := range map[string][]shot{
		"calls began after revoke had returned and got a value": late, "calls failed though nobody revoked their key": broken,
		"calls got the value of somebody else": foreign,
	} {
		if len(bad) > 0 {
			b.t.Errorf("%d of %d %s, such as %s: %s", len(bad), len(b.shots), what, battleName(bad[0].who), bad[0].said)
		}
	}
	var took, sinceBegun, sinceEnded, calls []time.Duration
	values, after := 0, 0
	for _, r := range b.revoked {
		took = append(took, r.ended.Sub(r.begun))
	}
	for _, s := range b.shots {
		calls = append(calls, s.ended.Sub(s.begun))
		if s.value != "" {
			values++
		} else if r, ok := b.revoked[s.who]; ok && s.begun.After(r.ended) {
			after++
		}
	}
	for _, s := range b.streams {
		if r, ok := b.revoked[s.who]; ok && s.begun.Before(r.begun) {
			sinceBegun = append(sinceBegun, s.ended.Sub(r.begun))
			sinceEnded = append(sinceEnded, s.ended.Sub(r.ended))
		}
	}
	slices.SortFunc(b.shots, func(a, b shot) int { return a.begun.Compare(b.begun) })
	lasted := b.shots[len(b.shots)-1].ended.Sub(b.shots[0].begun)
	b.t.Logf("%d calls in %v (%.0f/s): %d values, %d refused after revoke; %d moves\na call: %s\nrevoke by the command: %s\nstreams end after revoke began: %s\nstreams end after revoke returned: %s",
		len(b.shots), lasted.Round(time.Millisecond), float64(len(b.shots))/lasted.Seconds(), values, after, b.moves, spread(calls), spread(took), spread(sinceBegun), spread(sinceEnded))
	if after < len(b.revoked) || len(sinceEnded) < len(b.revoked)/4 || len(b.revoked) != len(b.doomed) {
		b.t.Errorf("%d revocations, %d calls after them, %d streams ended by them: too few to say anything", len(b.revoked), after, len(sinceEnded))
	}
	limit := 10 * time.Second
	if soaking() {
		limit = time.Second
	}
	if len(sinceEnded) > 0 && slices.Max(sinceEnded) >= limit {
		b.t.Errorf("a stream lived for %v after revoke, want less than %v", slices.Max(sinceEnded), limit)
	}
}

// control judges the same load with a lie about who was revoked: what nobody
// revoked then looks late, and what was revoked then looks broken.
func (b *battle) control() {
	lie := map[int]span{}
	for who := range b.keys {
		if _, ok := b.revoked[who]; !ok {
			lie[who] = span{b.shots[0].begun.Add(-2), b.shots[0].begun.Add(-1)}
		}
	}
	late, broken, _ := judgeShots(b.shots, lie, battleValue)
	_, cut, _ := judgeShots(b.streams, lie, battleValue)
	if len(late) == 0 || len(broken) == 0 || len(cut) == 0 {
		b.t.Errorf("of a false list of revocations the judge says %d late, %d broken, %d streams cut, want some of each", len(late), len(broken), len(cut))
	}
}

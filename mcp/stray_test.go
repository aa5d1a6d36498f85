package mcp_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// TestUnknownToolsCountAgainstTheRate: each such call is a line of the log, so
// it must not be cheaper than one that reads.
func TestUnknownToolsCountAgainstTheRate(t *testing.T) {
	for name, strays := range map[string]int{"none before": 0, "a burst before": 4} {
		t.Run(name, func(t *testing.T) {
			e := newEstate(t, mcp.HTTPOptions{Loopback: true, Rate: 1}) // in bursts of four
			for range strays {
				e.post("/mcp", e.key, call(1, "no_such_tool", `{}`))
			}
			a := e.post("/mcp", e.key, call(2, "get_secret", `{"label":"openai"}`))
			if limited := strings.Contains(a.body, "rate_limited"); limited != (strays > 0) {
				t.Errorf("after %d calls of an unknown tool: %s", strays, a.body)
			}
		})
	}
}

// TestNewKeyMayComeManyTimesAtOnce: after a restart no key has proved itself,
// and each agent has many requests under way.
func TestNewKeyMayComeManyTimesAtOnce(t *testing.T) {
	h := newHouse(t)
	good := h.agent("a", identity.Grant{})
	h.put(good, secret("openai", "CANARY-of-a"))
	wrong := identity.NewKey(identity.Agent, good.Identity())
	for name, c := range map[string]struct {
		key  identity.Key
		want int // answers of 120 that are 429
	}{"a key that opens": {good, 0}, "control: one that does not": {wrong, 70}} {
		t.Run(name, func(t *testing.T) {
			slow := func(ctx context.Context, k identity.Key, from vault.Source) (*vault.Vault, error) {
				time.Sleep(20 * time.Millisecond) // so that all have arrived before the first is proved
				return h.keeper.Unlock(ctx, k, from)
			}
			s := mcp.New(slow, mcp.Options{Now: func() time.Time { return h.now }, HTTP: mcp.HTTPOptions{Loopback: true}})
			var limited atomic.Int64
			var wait sync.WaitGroup
			for range 120 {
				wait.Go(func() {
					r := httptest.NewRequest(http.MethodPost, "/mcp", strings.NewReader(request(1, "ping", "{}")))
					r.Host = "127.0.0.1"
					r.Header.Set("Content-Type", "application/json")
					r.Header.Set("Authorization", "Bearer "+c.key.Reveal())
					w := httptest.NewRecorder()
					s.Handler().ServeHTTP(w, r)
					if w.Code == http.StatusTooManyRequests {
						limited.Add(1)
					}
				})
			}
			wait.Wait()
			if got := int(limited.Load()); got != c.want {
				t.Errorf("%d of 120 answers are 429, want %d", got, c.want)
			}
		})
	}
}

func TestLabelThatIsAKeyIsNotRepeated(t *testing.T) {
	e := newEstate(t, mcp.HTTPOptions{Loopback: true})
	escaped := strings.Replace(e.key.Reveal(), "_", "\\u005f", 1)
	a := e.post("/mcp", e.key, call(1, "get_secret", `{"label":"`+escaped+`"}`))
	if strings.Contains(a.body, e.key.Reveal()) || !strings.Contains(a.body, "leaked") {
		t.Errorf("the answer is %s", a.body)
	}
}

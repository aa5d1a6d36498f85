// Package mcp serves vaults to agents over the Model Context Protocol: the
// `initialize` handshake up to revision 2025-11-25 and the stateless revision
// 2026-07-28, on the same connection.
//
// A [Server] holds a function that turns a key into a vault, and no keeper:
// nothing an agent says can revoke, list identities or reach another vault.
// The key is proved again on every request, so a revoked one ends with the
// next call. No vault, grant or value is kept between requests, apart from
// the scopes by which a stdio session shows its tools, and the vault by which
// an event stream asks whether its key still holds.
//
// No error text of a lower package, no panic and no argument leaves: every
// result is built in one place, from the words of [vault.Refusal]. Arguments
// and values are never logged. What clients meet is described in
// docs/PRODUCT.md, section 5.
package mcp

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

const instructions = "Credentials by label. Call list_labels first. Never print, log or store a secret value. If a call is refused, do what its hint says."

// listTTL is how long a client of revision 2026-07-28 may keep tools/list.
const listTTL = 60 * time.Second

// Unlock turns a key into the vault of its identity. It gets the zero key
// when there is none, and then answers the refusal to show.
// (*vault.Keeper).Unlock fits.
type Unlock func(ctx context.Context, k identity.Key, from vault.Source) (*vault.Vault, error)

// Options configure a [Server].
type Options struct {
	Version string           // of the program, as clients show it
	Log     *slog.Logger     // what fails inside, by type, without texts or arguments; nil: silent
	Now     func() time.Time // nil: time.Now
	HTTP    HTTPOptions      // for Handler
}

// Server serves the tools of a vault to agents. It is safe for concurrent
// use.
type Server struct {
	unlock   Unlock
	log      *slog.Logger
	now      func() time.Time
	tools    map[string]tool
	proto    *server.MCPServer
	endpoint *endpoint
	sessions atomic.Int64
}

// New returns a Server that opens vaults with u, which must not be nil.
func New(u Unlock, o Options) *Server {
	s := &Server{unlock: u, log: o.Log, now: o.Now, tools: map[string]tool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.endpoint = newEndpoint(s, o.HTTP)
	hooks := &server.Hooks{}
	hooks.AddOnError(s.strayCall)
	s.proto = server.NewMCPServer("solekey", o.Version,
		server.WithToolHandlerMiddleware(s.edge),
		server.WithToolCapabilities(false), // nothing can be subscribed to
		server.WithToolFilter(s.byScope),
		server.WithHooks(hooks),
		server.WithInstructions(instructions),
		server.WithTitle("solekey"),
		server.WithCacheHints(listTTL.Milliseconds(), mcp.CacheScopePrivate),
	)
	for _, t := range s.table() {
		s.tools[t.name] = t
		s.proto.AddTool(t.describe(), s.serve(t))
	}
	return s
}

// caller is whose request it is.
type caller struct {
	open   func(context.Context) (*vault.Vault, error)
	scopes atomic.Pointer[identity.Scopes] // of the last unlock; nil if it failed
	quota  *quota                          // nil: no limits
}

// callerKey is the one context key of the package. It is set by the transport
// that proved the key, and nowhere else.
type callerKey struct{}

func withCaller(ctx context.Context, c *caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf returns the caller of a request; nil if no transport set one.
func callerOf(ctx context.Context) *caller {
	c, _ := ctx.Value(callerKey{}).(*caller)
	return c
}

// unlock opens the caller's vault afresh and remembers what the key may do,
// for the tool filter. A nil caller is unauthorized.
func (c *caller) unlock(ctx context.Context) (*vault.Vault, error) {
	if c == nil {
		return nil, errNoCaller
	}
	v, err := c.open(ctx)
	if err != nil {
		c.scopes.Store(nil)
		return nil, err
	}
	scopes := v.Grant().Scopes
	c.scopes.Store(&scopes)
	return v, nil
}

// admit lets one tool call begin, if the caller is within its rate. What is
// over it leaves no audit line: a line for each would be the flood.
func (c *caller) admit(now time.Time) error {
	if c == nil {
		return errNoCaller
	}
	return c.quota.call(now)
}

// errNoCaller reports a request that no transport vouched for. It reads
// `internal error` outside: it is a fault of this package.
var errNoCaller = errors.New("request without a caller")

// byScope keeps the tools that the caller's key has the scope for. It is
// presentation: the vault judges every call again. A key that opens nothing
// sees every tool, because each of them then answers what is wrong with it.
func (s *Server) byScope(ctx context.Context, all []mcp.Tool) []mcp.Tool {
	c := callerOf(ctx)
	if c == nil {
		return nil
	}
	scopes := c.scopes.Load()
	if scopes == nil {
		return all
	}
	var seen []mcp.Tool
	for _, t := range all {
		if scopes.Has(s.tools[t.Name].scope) {
			seen = append(seen, t)
		}
	}
	return seen
}

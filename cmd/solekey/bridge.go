package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/bridge"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// remoteProfile returns the profile of this command if it is a remote one and
// nothing else says whose key it is.
func (a *app) remoteProfile(k keyFlags) (profile, bool) {
	if a.conf.profile == "" || k.file != "" || k.fd >= 0 || a.conf.envKeyFile != "" || a.conf.envKey != "" {
		return profile{}, false
	}
	p, err := a.anyProfile(a.conf.profile)
	return p, err == nil && p.remote()
}

// bridge serves the endpoint of a profile on stdin and stdout.
func (a *app) bridge(ctx context.Context, p profile) error {
	endpoint, err := bridge.ParseEndpoint(p.URL)
	if err != nil {
		return failf(exitUsage, "profile %s: %v", p.name, err)
	}
	if !a.conf.quiet {
		fmt.Fprintf(a.stderr, "solekey: bridging %s to %s on stdio\n", p.name, endpoint)
	}
	a.tellTypist(nil)
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return bridge.Serve(ctx, bridge.Options{
		Endpoint: endpoint,
		Key:      func() (string, *bridge.Refusal) { return a.bridgeKey(p) },
		Local:    local,
		Log:      log,
		Version:  version().Version,
	}, a.stdin, a.stdout)
}

// bridgeKey reads the key of a remote profile, or words why there is none.
func (a *app) bridgeKey(p profile) (string, *bridge.Refusal) {
	text, err := a.bearer(p)
	if err == nil {
		err = a.unmoved(p)
	}
	if err == nil {
		return text, nil
	}
	r := vault.Refuse((&door{app: a}).refusal(err))
	return "", &bridge.Refusal{Word: string(r.Word.Agent()), Message: r.Message, Hint: r.Hint, RetryAfter: r.RetryAfter}
}

// bearer returns the key of a remote profile as text, for the endpoint of the
// profile. A recovery key never goes out: it opens the vault for good.
func (a *app) bearer(p profile) (string, error) {
	in, err := a.keyOf(p)
	if err != nil {
		return "", err
	}
	if err := agentOnly(in); err != nil {
		return "", err
	}
	if in.key.Identity().String() != p.ID {
		return "", failf(exitNotFound, "the key of profile %s is another identity's", p.name).hint("solekey profile rm "+p.name, "solekey profile add "+p.name+" --remote "+p.URL)
	}
	return reveal(in), nil
}

// unmoved refuses a profile that was made anew since p was read: the key that
// rests under its name may be another endpoint's. It is asked after the key
// was read, since a profile is written after its key.
func (a *app) unmoved(p profile) error {
	now, err := a.anyProfile(p.name)
	if err != nil {
		return missingProfile(p.name, err)
	}
	if now.URL != p.URL {
		return failf(exitNotFound, "profile %s leads elsewhere now", p.name).hint("restart this MCP server")
	}
	return nil
}

// agentOnly refuses a key that must not be sent to an endpoint.
func agentOnly(in intake) error {
	if in.key.Kind() != identity.Agent {
		return failf(exitUsage, "%s: this is a recovery key, which never leaves its owner; an endpoint takes agent keys", in.from).
			hint("solekey identity rotate NAME --api-key-file FILE --print-key     (where the store is)")
	}
	return nil
}

// local answers a request as a server would whose vault does not open: the
// handshake and the list of tools, so that the client starts it and each call
// can say what is wrong.
func local(ctx context.Context, request []byte, why *bridge.Refusal) []byte {
	closed := func(context.Context, identity.Key, vault.Source) (*vault.Vault, error) {
		return nil, &vault.Refusal{Word: vault.Word(why.Word), Message: why.Message, Hint: why.Hint, RetryAfter: why.RetryAfter}
	}
	var out bytes.Buffer
	server := mcp.New(closed, mcp.Options{Version: version().Version})
	if err := server.ServeStdio(ctx, identity.Key{}, bytes.NewReader(request), &out); err != nil {
		return nil
	}
	return out.Bytes()
}

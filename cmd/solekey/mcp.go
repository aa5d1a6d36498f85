package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

func mcpCommand(a *app) *cobra.Command {
	var key keyFlags
	c := &cobra.Command{
		Use:   "mcp",
		Short: "Serve one vault to an MCP client on stdin and stdout",
		Long: `Serve the vault of one key to an MCP client on stdin and stdout. The key is that
of --profile, a file (--api-key-file, SOLEKEY_API_KEY_FILE), a descriptor
(--api-key-fd) or SOLEKEY_API_KEY: one of them.

A profile with a URL is bridged: each request goes to that endpoint with the
profile's key, so a client that only starts programs reaches a hosted vault.

A server whose profile, key, store or endpoint is gone still serves, and every
call answers the cause, as clients hide what a server says on stderr.`,
		Example: `  solekey mcp --profile claude-code
  claude mcp add-json --scope user solekey '{"type":"stdio","command":"solekey","args":["mcp","--profile","claude-code"]}'`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), key) },
	}
	key.declare(c.Flags())
	return c
}

func (a *app) serve(ctx context.Context, kf keyFlags) error {
	if p, ok := a.remoteProfile(kf); ok {
		return a.bridge(ctx, p)
	}
	in, cause := a.agentKey(kf, "")
	if cause != nil && explain(cause).exit == exitUsage {
		return cause
	}
	a.tellTypist(cause)
	log := slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d := &door{app: a, log: log, in: in, cause: cause}
	defer d.close()
	server := mcp.New(d.unlock, mcp.Options{Version: version().Version, Log: log})
	return server.ServeStdio(ctx, in.key, a.stdin, a.stdout)
}

// tellTypist tells a person who started a server by hand what it waits for,
// and why every call would be refused. A client has no terminal on stdin.
func (a *app) tellTypist(cause error) {
	if a.conf.quiet || !isTerminal(a.stdin) {
		return
	}
	a.fail(cause)
	fmt.Fprintln(a.stderr, "solekey: waiting for an MCP client on stdin; clients start this command themselves, Ctrl-D ends it")
	if cause == nil {
		fmt.Fprintln(a.stderr, "  "+a.paint(a.stderr, "2", "try: ")+"solekey profile show NAME     (the entry for a client)")
	}
}

// door opens the vault that a stdio server serves. The store is opened by the
// first call, and again by a later one if it was missing; a key that was
// rotated is read again from its profile.
type door struct {
	app *app
	log *slog.Logger

	mu     sync.Mutex
	in     intake
	cause  error // why there is no key
	keeper *vault.Keeper
	told   bool // the line on stderr was printed
	wait   sync.WaitGroup
}

// unlock answers every request of the server. Its own key counts: it may have
// changed since the server was started.
func (d *door) unlock(ctx context.Context, _ identity.Key, from vault.Source) (*vault.Vault, error) {
	k, key, err := d.open()
	if err != nil {
		return nil, d.refusal(err)
	}
	v, err := k.Unlock(ctx, key, from)
	if err != nil && dead(err) {
		if next, ok := d.reread(key); ok {
			v, err = k.Unlock(ctx, next, from)
		}
	}
	if err != nil {
		return nil, d.refusal(err)
	}
	d.tell(k, v)
	return v, nil
}

// dead reports that a key is at its end, as far as the store is concerned.
func dead(err error) bool {
	return errors.Is(err, vault.Revoked) || errors.Is(err, vault.Expired) || errors.Is(err, vault.Unauthorized)
}

// open returns the keeper and the key, as far as they exist by now.
func (d *door) open() (*vault.Keeper, identity.Key, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cause != nil && d.app.conf.profile != "" {
		d.in, d.cause = d.app.profileKey(d.app.conf.profile)
	}
	if d.cause != nil {
		return nil, identity.Key{}, d.cause
	}
	if d.keeper == nil {
		debug.SetGCPercent(400) // a third of the CPU under load, for a few MiB; here it does not delay the handshake
		dir, err := d.dir()
		if err != nil {
			return nil, identity.Key{}, err
		}
		if d.keeper, err = d.app.openStore(dir); err != nil {
			d.keeper = nil
			return nil, identity.Key{}, err
		}
	}
	return d.keeper, d.in.key, nil
}

func (d *door) dir() (string, error) {
	if d.app.conf.home == "" && d.in.prof.Store != "" {
		return filepath.Clean(d.in.prof.Store), nil
	}
	return d.app.conf.dataDir()
}

// reread reads the key of the profile again. It reports whether it is another
// one than old.
func (d *door) reread(old identity.Key) (identity.Key, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.in.key.Slot() != old.Slot() {
		return d.in.key, true // another call was faster
	}
	if d.in.prof.name == "" {
		return identity.Key{}, false
	}
	in, err := d.app.profileKey(d.in.prof.name)
	if err != nil || in.key.Slot() == old.Slot() {
		return identity.Key{}, false
	}
	d.in = in
	return in.key, true
}

// refusal words what is wrong on this machine for the agent, and for the
// person whom it will tell.
func (d *door) refusal(err error) error {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return err
	}
	word, hint := vault.Unavailable, "Tell the owner to run: solekey doctor."
	if f.exit == exitNotFound || f.exit == exitUsage {
		word = vault.Unauthorized
	}
	if len(f.try) > 0 {
		hint = "Tell the owner to run: " + f.try[0] + "."
	}
	return &vault.Refusal{Word: word, Message: capital(f.message) + ".", Hint: hint}
}

func capital(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// tell prints, once and beside the answer it comes with, what is served.
func (d *door) tell(k *vault.Keeper, v *vault.Vault) {
	d.mu.Lock()
	told := d.told
	d.told = true
	d.mu.Unlock()
	if told || d.app.conf.quiet {
		return
	}
	d.wait.Go(func() {
		labels, err := k.Labels(context.Background(), v.Identity())
		if err != nil {
			return
		}
		seen := 0
		for _, l := range labels {
			if v.Grant().Covers(string(l.Label)) {
				seen++
			}
		}
		fmt.Fprintf(d.app.stderr, "solekey: serving %s (%s; %s) on stdio\n", v.Name(), count(seen, "label"), v.Grant().Scopes)
	})
}

func (d *door) close() {
	d.wait.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.keeper != nil {
		_ = d.keeper.Close()
	}
}

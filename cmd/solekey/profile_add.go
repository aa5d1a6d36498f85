package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/internal/bridge"
	"github.com/solekey/solekey/vault"
)

// checkTime is how long `profile add` waits for the endpoint.
const checkTime = 30 * time.Second

type remoteFlags struct {
	remote  string
	key     keyFlags
	stdin   bool
	noCheck bool
}

func profileAdd(a *app) *cobra.Command {
	var f remoteFlags
	c := &cobra.Command{
		Use:   "add NAME --remote URL",
		Short: "Add a profile for a hosted endpoint and keep its key",
		Long: `Add a profile for a vault behind a hosted endpoint. The agent key is asked for
hidden, or read from a file, a descriptor or stdin, and kept in the OS keyring
or in a private file. It is tried before it is kept: one that the endpoint
refuses is not. URL is https://HOST[:PORT], http:// for a loopback address
only; without a path it leads to /mcp.`,
		Example: `  solekey profile add ci --remote https://vault.example.com
  solekey profile add ci --remote https://vault.example.com --api-key-file ci.key`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.addProfile(cmd.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.remote, "remote", "", "`URL` of the endpoint")
	f.key.declare(c.Flags())
	c.Flags().BoolVar(&f.stdin, "stdin", false, "read the key from stdin")
	c.Flags().BoolVar(&f.noCheck, "no-check", false, "keep the key without trying it")
	return c
}

// addedRow is a new profile in JSON.
type addedRow struct {
	profileRow
	Checked bool   `json:"checked"`
	Server  string `json:"server,omitempty"`
	Tools   int    `json:"tools"`
}

func (a *app) addProfile(ctx context.Context, name string, f remoteFlags) error {
	if err := checkProfileName(name); err != nil {
		return err
	}
	if f.remote == "" {
		return failf(exitUsage, "where is the endpoint?").hint("solekey profile add "+name+" --remote https://HOST", "solekey identity create NAME     (for a store on this machine)")
	}
	endpoint, err := bridge.ParseEndpoint(f.remote)
	if err != nil {
		return failf(exitUsage, "--remote: %v", err).hint("solekey profile add " + name + " --remote https://HOST[:PORT]")
	}
	dest := keyDest{fresh: true, prof: profile{URL: endpoint.String(), name: name}}
	if err := dest.ready(a); err != nil {
		return err
	}
	defer dest.release()
	in, err := a.givenKey(ctx, f, endpoint)
	if err != nil {
		return err
	}
	out := addedRow{Checked: !f.noCheck}
	if !f.noCheck {
		found, err := a.tryEndpoint(ctx, endpoint, in)
		if err != nil {
			return err
		}
		out.Server, out.Tools = found.Name, found.Tools
	}
	if err := dest.keep(a, in.key); err != nil {
		return err
	}
	return a.added(dest, out)
}

// givenKey reads the agent key of an endpoint from where the flags say, else
// from a person.
func (a *app) givenKey(ctx context.Context, f remoteFlags, e bridge.Endpoint) (in intake, err error) {
	given := 0
	for _, on := range []bool{f.stdin, f.key.file != "", f.key.fd >= 0} {
		if on {
			given++
		}
	}
	switch {
	case given > 1:
		err = failf(exitUsage, "two sources of a key were given: use one of --stdin, --api-key-file, --api-key-fd")
	case f.stdin:
		in, err = a.keyOnStdin()
	case f.key.file != "":
		in, err = keyFile(f.key.file, "--api-key-file")
	case f.key.fd >= 0:
		in, err = keyDescriptor(f.key.fd)
	default:
		in, err = a.askKey(ctx, e)
	}
	if err == nil {
		err = agentOnly(in)
	}
	return in, err
}

func (a *app) keyOnStdin() (intake, error) {
	if isTerminal(a.stdin) {
		return intake{}, failf(exitUsage, "stdin is a terminal; leave --stdin out for a hidden prompt")
	}
	b, err := io.ReadAll(io.LimitReader(a.stdin, maxKeyFile))
	if err != nil {
		return intake{}, failf(exitUsage, "stdin cannot be read")
	}
	defer clear(b)
	return parseIntake(string(b), "stdin")
}

func (a *app) askKey(ctx context.Context, e bridge.Endpoint) (intake, error) {
	t, err := openTerminal()
	if err != nil {
		return intake{}, needsFlag("the agent key is asked for hidden", "--stdin, or --api-key-file FILE")
	}
	defer t.Close()
	b, err := t.secret(ctx, "agent key for "+e.String())
	if err != nil {
		return intake{}, err
	}
	defer clear(b)
	if err := t.settled(); err != nil {
		return intake{}, err
	}
	return parseIntake(string(b), "the key")
}

// tryEndpoint asks the endpoint for its tools with a key that is not kept
// yet.
func (a *app) tryEndpoint(ctx context.Context, e bridge.Endpoint, in intake) (bridge.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	text := reveal(in)
	found, err := bridge.Check(ctx, bridge.Options{
		Endpoint: e, Version: version().Version,
		Key: func() (string, *bridge.Refusal) { return text, nil },
	})
	why, ok := errors.AsType[*bridge.Refusal](err)
	if !ok {
		return found, err
	}
	w := vault.Word(why.Word)
	f := &failure{exit: w.Exit(), word: why.Word, message: e.String() + ": " + sentence(why.Message) + "; nothing was stored"}
	if w == vault.Unavailable {
		f.hint("curl -i " + e.String())
	}
	if w == vault.Unavailable && why.RetryAfter > 0 { // it may come up later
		f.hint("the same command with --no-check")
	}
	return found, f
}

func (a *app) added(d keyDest, out addedRow) error {
	out.profileRow = a.profileRow(d.prof)
	if a.conf.asJSON {
		return a.writeJSON(out)
	}
	found := "not checked"
	if out.Checked {
		found = "ok, " + count(out.Tools, "tool")
	}
	a.row("profile", "added", fmt.Sprintf("%s  %s  %s  key %s  (%s)", out.Profile, out.URL, found, out.KeyID, whereWords(d.src)))
	if out.Checked && out.Tools == 0 {
		a.warn("this key may call no tool there")
	}
	a.say("client: %s", clientSnippet(out.Profile))
	return nil
}

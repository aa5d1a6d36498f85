package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

// personProfile is the profile that get and code fall back to: what a person
// runs, so that an agent's receipt holds only what the agent did.
const personProfile = "me"

func getCommand(a *app) *cobra.Command {
	var key keyFlags
	var show bool
	c := &cobra.Command{
		Use:   "get LABEL[#FIELD]",
		Short: "Read one value as the agent of a profile",
		Long: `Read one value with the key of a profile (--profile, else the profile "me"), a
key file or a descriptor. The read is logged before the value is printed. To a
terminal it is printed only with --show.`,
		Example: `  solekey get OPENAI_API_KEY --profile claude-code --show
  PGPASSWORD=$(solekey get db/password) psql`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeLabels,
		RunE: func(cmd *cobra.Command, args []string) error { return a.get(cmd.Context(), args[0], key, show) },
	}
	key.declare(c.Flags())
	c.Flags().BoolVar(&show, "show", false, "print the value although stdout is a terminal")
	return c
}

// valueRow is a value in JSON.
type valueRow struct {
	Label    string   `json:"label"`
	Kind     string   `json:"kind"`
	Field    string   `json:"field"`
	Value    string   `json:"value"`
	Encoding string   `json:"encoding"` // utf-8 or base64
	Fields   []string `json:"fields"`
	Version  uint32   `json:"version"`
	Expires  string   `json:"expires_at,omitempty"`
}

func (a *app) get(ctx context.Context, arg string, kf keyFlags, show bool) error {
	label, field, _ := strings.Cut(arg, "#")
	l, err := vault.ParseLabel(label)
	if err != nil || strings.HasSuffix(arg, "#") {
		return failf(exitUsage, "not a label: %v", vault.ErrMalformedLabel)
	}
	terminal := isTerminal(a.stdout)
	if terminal && !show {
		return failf(exitUsage, "the value would be shown on this terminal").hint("solekey get " + arg + " --show")
	}
	v, done, err := a.unlock(ctx, kf)
	if err != nil {
		return err
	}
	defer done()
	s, err := v.Get(ctx, l, field)
	if err != nil {
		return a.agentError(err, l)
	}
	if a.conf.asJSON {
		return a.writeJSON(valueOf(s))
	}
	value := s.Reveal()
	if terminal {
		value += "\n"
	}
	_, err = io.WriteString(a.stdout, value)
	return err
}

func valueOf(s vault.Secret) valueRow {
	r := valueRow{Label: string(s.Label), Kind: s.Kind.String(), Field: s.Field, Value: s.Reveal(), Encoding: "utf-8", Fields: s.Fields, Version: s.Version, Expires: at(s.Expires)}
	if !utf8.ValidString(r.Value) {
		r.Value, r.Encoding = base64.StdEncoding.EncodeToString([]byte(r.Value)), "base64"
	}
	return r
}

// unlock opens the vault of the key that this command acts with.
func (a *app) unlock(ctx context.Context, kf keyFlags) (v *vault.Vault, done func(), err error) {
	in, err := a.agentKey(kf, personProfile)
	if err != nil {
		return nil, nil, err
	}
	dir := in.prof.Store
	if dir == "" || a.conf.home != "" {
		if dir, err = a.conf.dataDir(); err != nil {
			return nil, nil, err
		}
	}
	k, err := a.openStore(dir)
	if err != nil {
		return nil, nil, err
	}
	if v, err = k.Unlock(ctx, in.key, vault.Source{Via: "cli"}); err != nil {
		_ = k.Close()
		return nil, nil, err
	}
	return v, func() { _ = k.Close() }, nil
}

// agentError adds the next command to a refusal of the agent's half, where
// the command line has one.
func (a *app) agentError(err error, l vault.Label) error {
	f := explain(err)
	switch {
	case vault.Refuse(err).Word == vault.Forbidden && strings.Contains(f.message, "TOTP seed; seeds never"):
		return f.hint("solekey code " + string(l))
	case vault.Refuse(err).Word == vault.NotFound:
		return f.hint("solekey list --identity NAME")
	}
	return err
}

func codeCommand(a *app) *cobra.Command {
	var key keyFlags
	atLeast := 10
	c := &cobra.Command{
		Use:   "code LABEL",
		Short: "Print a one-time code as the agent of a profile",
		Long: `Print the one-time code of a label on stdout, and how long it holds on stderr.
A code is handed out once: a second call waits for the next one. The seed
never leaves.`,
		Example: `  solekey code github
  solekey code github --profile claude-code --min-remaining 20`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeLabels,
		RunE: func(cmd *cobra.Command, args []string) error { return a.code(cmd.Context(), args[0], key, atLeast) },
	}
	key.declare(c.Flags())
	c.Flags().IntVar(&atLeast, "min-remaining", atLeast, "seconds that the code must hold at least")
	return c
}

func (a *app) code(ctx context.Context, label string, kf keyFlags, atLeast int) error {
	l, err := vault.ParseLabel(label)
	if err != nil {
		return failf(exitUsage, "not a label: %v", vault.ErrMalformedLabel)
	}
	if atLeast < 0 || atLeast > 299 {
		return failf(exitUsage, "--min-remaining takes 0 to 299")
	}
	v, done, err := a.unlock(ctx, kf)
	if err != nil {
		return err
	}
	defer done()
	if isTerminal(a.stderr) {
		defer time.AfterFunc(500*time.Millisecond, func() { a.say("waiting for the next code") }).Stop()
	}
	code, err := v.Code(ctx, l, time.Duration(atLeast)*time.Second)
	if err != nil {
		return a.agentError(err, l)
	}
	left := int(code.Until.Sub(a.now()).Seconds())
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Label     string `json:"label"`
			Code      string `json:"code"`
			Remaining int    `json:"remaining"`
			Period    int    `json:"period"`
			Until     string `json:"valid_until"`
		}{label, code.Digits, left, int(code.Period.Seconds()), at(code.Until)})
	}
	if _, err := fmt.Fprintln(a.stdout, code.Digits); err != nil {
		return err
	}
	a.say("%d s left", left)
	return nil
}

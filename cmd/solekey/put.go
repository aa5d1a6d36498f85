package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

type putFlags struct {
	entryFlags
	stdin      bool
	file       string
	fields     []string
	otp        bool
	raw        bool
	binary     bool
	everywhere bool

	held bool // the label holds a seed
}

func putCommand(a *app) *cobra.Command {
	var f putFlags
	c := &cobra.Command{
		Use:   "put LABEL",
		Short: "Store a value under a label",
		Long: `Store a value under a label, as a new version if the label exists. The value is
asked for hidden, or read with --stdin or --file; never from an argument. One
final newline is dropped unless --raw.

The owner can write and never read back. A known name, such as
OPENAI_API_KEY, is bound to its provider's host unless --no-hosts.`,
		Example: `  solekey put OPENAI_API_KEY --identity claude-code
  pbpaste | solekey put db/password --stdin --exposure use
  solekey put tls/key --file server.key
  solekey put github --otp
  printf 'hunter2\nana\n' | solekey put shop --kind login --field username --stdin`,
		Args:              putArgs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.put(cmd.Context(), args[0], f) },
		ValidArgsFunction: a.completeLabels,
	}
	f.entryFlags.declare(c)
	c.Flags().StringVar(&f.kind, "kind", "", "`KIND` of the entry: secret, login or totp (default what the value looks like)")
	c.Flags().BoolVar(&f.stdin, "stdin", false, "read the value from stdin; with --field, one line each")
	c.Flags().StringVar(&f.file, "file", "", "read the value from this `FILE`")
	c.Flags().StringArrayVar(&f.fields, "field", nil, "further `FIELD` of the entry, such as username; may be repeated")
	c.Flags().BoolVar(&f.otp, "otp", false, "ask for the seed of one-time codes; short for --kind totp")
	c.Flags().BoolVar(&f.raw, "raw", false, "keep a final newline")
	c.Flags().BoolVar(&f.binary, "binary", false, "the value need not be UTF-8")
	c.Flags().BoolVar(&f.everywhere, "everywhere", false, "write to every vault that has the label")
	_ = c.RegisterFlagCompletionFunc("kind", words("secret", "login", "totp"))
	return c
}

// putArgs takes one label. More arguments are values.
func putArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return valueInArgs(args[0])
	}
	return usageArgs(cobra.ExactArgs(1))(cmd, args)
}

// storedRow is one stored entry in JSON.
type storedRow struct {
	Identity  string   `json:"identity"`
	Label     string   `json:"label"`
	Version   uint32   `json:"version"`
	Kind      string   `json:"kind"`
	Exposure  string   `json:"exposure"`
	Hosts     []string `json:"hosts,omitempty"`
	Placement string   `json:"placement,omitempty"`
	Expires   string   `json:"expires_at,omitempty"`
	Never     []string `json:"never,omitempty"` // fields that are never given out, whatever the exposure
	Notes     []string `json:"notes,omitempty"`
}

func (a *app) put(ctx context.Context, label string, f putFlags) error {
	e, err := f.check(label, a.now())
	if err != nil {
		return err
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	targets, err := a.putTargets(ctx, k, e.Label, f.everywhere)
	if err != nil {
		return err
	}
	if err := f.keepSeed(ctx, k, targets, &e); err != nil {
		return err
	}
	if err := a.readValues(ctx, &e, f); err != nil {
		return err
	}
	defer func() { wipeFields(e.Fields) }()
	hint, err := f.judge(&e)
	if err != nil {
		return err
	}
	guardFields(e.Fields)
	if hint.Warn {
		a.warn("%s: %s", e.Label, strings.Join(hint.Notes, "; "))
		hint.Notes = nil
	}
	return a.store(ctx, k, targets, e, hint.Notes)
}

// check judges the flags that go together.
func (f *putFlags) check(label string, now time.Time) (vault.NewEntry, error) {
	if f.otp {
		if f.kind != "" && f.kind != "totp" {
			return vault.NewEntry{}, failf(exitUsage, "a seed is kept under a label of its own").hint("solekey put " + cmp.Or(label, "LABEL") + "/otp --otp")
		}
		f.kind = "totp"
	}
	e, err := f.entry(label, now)
	switch {
	case err != nil:
		return e, err
	case f.stdin && f.file != "":
		return e, failf(exitUsage, "--stdin and --file exclude each other")
	case e.Kind == vault.KindTOTP && f.exposure != "":
		return e, failf(exitUsage, "a seed never leaves; --exposure is for other kinds")
	case e.Kind == vault.KindTOTP && len(f.fields) > 0:
		return e, failf(exitUsage, "a seed has no further fields")
	}
	for _, name := range f.fields {
		if name == "value" || name == "otp" || !fieldName(name) {
			return e, failf(exitUsage, "--field takes a name of a-z, 0-9 and _, other than value and otp")
		}
	}
	return e, nil
}

// keepSeed lets a label that holds a seed go on holding one, unless --kind
// says otherwise: what is put there without a word is the next seed, and must
// not become a secret that can be read.
func (f *putFlags) keepSeed(ctx context.Context, k *vault.Keeper, targets []vault.Info, e *vault.NewEntry) error {
	if f.kind != "" {
		return nil
	}
	for _, i := range targets {
		labels, err := k.Labels(ctx, i.ID)
		if err != nil {
			return err
		}
		for _, l := range labels {
			if l.Label != e.Label || l.Kind != vault.KindTOTP {
				continue
			}
			if f.exposure != "" || len(f.fields) > 0 {
				return failf(exitUsage, "%s holds a seed in %s, which takes neither --exposure nor --field", e.Label, i.Name).hint(asSecret(e.Label))
			}
			f.held, e.Kind = true, vault.KindTOTP
		}
	}
	return nil
}

// asSecret is the command that stores what looks like a seed as text.
func asSecret(l vault.Label) string { return "solekey put " + string(l) + " --kind secret" }

// guardFields marks the fields that never leave: those whose names say that
// they make codes or keys, and seeds under any name.
func guardFields(fs []vault.Field) {
	for i := range fs {
		f := &fs[i]
		f.Never = f.Name != "value" && (catalog.IsSecretField(f.Name) || catalog.IsSeedURI(string(f.Value)))
	}
}

func fieldName(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// putTargets returns the vaults to write to, before anybody is asked for a
// value.
func (a *app) putTargets(ctx context.Context, k *vault.Keeper, l vault.Label, everywhere bool) ([]vault.Info, error) {
	if !everywhere {
		out, err := a.several(ctx, k)
		if err != nil {
			return nil, err
		}
		for _, i := range out {
			if err := stillActive(i, cmp.Or(i.Name, i.ID.String())); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	if len(a.conf.identities) > 0 {
		return nil, failf(exitUsage, "--everywhere and --identity exclude each other")
	}
	all, err := a.active(ctx, k)
	if err != nil {
		return nil, err
	}
	var out []vault.Info
	for _, i := range all {
		has, err := hasLabel(ctx, k, i, l)
		if err != nil {
			return nil, err
		}
		if has {
			out = append(out, i)
		}
	}
	if len(out) == 0 {
		return nil, failf(exitNotFound, "no vault has the label %s", l).hint("solekey put " + string(l) + " --identity NAME")
	}
	return out, nil
}

func hasLabel(ctx context.Context, k *vault.Keeper, i vault.Info, l vault.Label) (bool, error) {
	labels, err := k.Labels(ctx, i.ID)
	if err != nil {
		return false, err
	}
	for _, x := range labels {
		if x.Label == l {
			return true, nil
		}
	}
	return false, nil
}

// judge settles the kind of an entry and the hosts that go with its name. A
// seed is one by how it begins, or by its name and alphabet; only --kind
// secret stores it as text.
func (f *putFlags) judge(e *vault.NewEntry) (catalog.Hint, error) {
	value := string(e.Fields[0].Value)
	hint := catalog.Guess(string(e.Label), value, nil)
	uri := catalog.IsSeedURI(value)
	if e.Kind == 0 {
		e.Kind = vault.KindSecret
		if uri || hint.Kind == catalog.TOTP {
			e.Kind = vault.KindTOTP
		}
	}
	switch {
	case e.Kind == vault.KindTOTP:
		return f.judgeSeed(e, hint)
	case uri && e.Kind != vault.KindSecret:
		return catalog.Hint{}, failf(exitUsage, "this is a seed of one-time codes, which is kept under a label of its own").hint("solekey put " + string(e.Label) + "/otp --otp")
	case uri:
		return catalog.Hint{Warn: true, Notes: []string{seedAsText}}, nil
	case f.noHosts || f.binary:
		return catalog.Hint{}, nil
	}
	if len(e.Hosts) == 0 {
		e.Hosts = hint.Hosts
		e.Placement = cmp.Or(e.Placement, hint.Placement)
	}
	return hint, nil
}

// seedAsText warns of a seed that is stored as a secret because it was asked
// for.
const seedAsText = "this is a seed of one-time codes; as a secret it can be read"

// judgeSeed checks a seed as the vault will.
func (f *putFlags) judgeSeed(e *vault.NewEntry, hint catalog.Hint) (catalog.Hint, error) {
	if f.exposure != "" {
		return catalog.Hint{}, failf(exitUsage, "this is a seed, which never leaves").hint(asSecret(e.Label))
	}
	if len(e.Fields) > 1 {
		return catalog.Hint{}, failf(exitUsage, "this is a seed, which has no further fields").hint(asSecret(e.Label))
	}
	switch hint.Reason {
	case catalog.ReasonCounter:
		return catalog.Hint{}, failf(exitUsage, "counter-based codes are not supported").hint(asSecret(e.Label))
	case catalog.ReasonMigration:
		return catalog.Hint{}, failf(exitUsage, "this holds several accounts: export one account at a time").hint(asSecret(e.Label))
	}
	seed, err := totp.Parse(string(e.Fields[0].Value))
	if err != nil {
		bad := seedError(err)
		if f.held {
			bad.message = string(e.Label) + " holds a seed, and this is none: " + bad.message
		}
		return catalog.Hint{}, bad.hint(asSecret(e.Label))
	}
	defer seed.Wipe()
	return catalog.Hint{Notes: []string{seedWords(seed)}}, nil
}

// seedWords describes a seed: issuer, account, digits and period.
func seedWords(s totp.Seed) string {
	who := strings.Trim(s.Issuer()+":"+s.Account(), ":")
	return strings.TrimPrefix(fmt.Sprintf("%s, %d digits, %d s", who, s.Digits(), int(s.Period().Seconds())), ", ")
}

// store writes the entry to each vault and says so. A vault that refuses does
// not keep the others from being written; its error is the command's.
func (a *app) store(ctx context.Context, k *vault.Keeper, targets []vault.Info, e vault.NewEntry, notes []string) error {
	var rows []storedRow
	var errs []error
	for _, i := range targets {
		s, err := k.Put(ctx, i.ID, e)
		if err != nil {
			if len(targets) > 1 {
				a.warn("%s: %s", i.Name, explain(err).message)
			}
			errs = append(errs, err)
			continue
		}
		r, err := storedIn(ctx, k, i, s, notes)
		if err != nil {
			return err
		}
		r.Never = neverFields(e)
		rows = append(rows, r)
		a.stored(r)
	}
	if a.conf.asJSON && len(rows) > 0 {
		if err := a.writeJSON(struct {
			Stored []storedRow `json:"stored"`
			Count  int         `json:"count"`
		}{rows, len(rows)}); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// storedIn reads back what the store made of the entry: the owner sees its
// description, and never its value.
func storedIn(ctx context.Context, k *vault.Keeper, i vault.Info, s vault.Stored, notes []string) (storedRow, error) {
	r := storedRow{Identity: i.Name, Label: string(s.Label), Version: s.Version, Notes: notes}
	labels, err := k.Labels(ctx, i.ID)
	if err != nil {
		return r, err
	}
	for _, l := range labels {
		if l.Label == s.Label {
			r.Kind, r.Exposure, r.Hosts, r.Placement, r.Expires = l.Kind.String(), l.Exposure.String(), l.Hosts, l.Placement, at(l.Expires)
		}
	}
	return r, nil
}

// neverFields names the further fields of an entry that never leave.
func neverFields(e vault.NewEntry) []string {
	var out []string
	for _, f := range e.Fields {
		if f.Never {
			out = append(out, f.Name)
		}
	}
	return out
}

func (a *app) stored(r storedRow) {
	rest := fmt.Sprintf("%s v%d in %s  %s", r.Label, r.Version, r.Identity, r.Exposure)
	if len(r.Hosts) > 0 {
		rest += "  host " + strings.Join(r.Hosts, ", ")
		if r.Placement != "" {
			rest += ", " + placementWords(r.Placement)
		}
	}
	if r.Expires != "" {
		rest += "  expires " + dayOf(r.Expires)
	}
	if len(r.Never) > 0 {
		rest += "  (never given out: " + strings.Join(r.Never, ", ") + ")"
	}
	if len(r.Notes) > 0 {
		rest += "  (" + strings.Join(r.Notes, "; ") + ")"
	}
	a.row("stored", "", rest)
	if r.Exposure == "use" && len(r.Hosts) == 0 {
		a.say("no host yet, so nothing can use it: put it again with --host HOST")
	}
}

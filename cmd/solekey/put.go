package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault"
)

// entryFlags say what an entry is, apart from its value.
type entryFlags struct {
	kind     string
	exposure string
	hosts    []string
	in       string
	expires  string
	tags     []string
	noHosts  bool
}

func (e *entryFlags) declare(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.exposure, "exposure", "", "reveal: agents may read it; use: they may only have it filled in (default that of the store)")
	f.StringArrayVar(&e.hosts, "host", nil, "host that a request may take it to; may be repeated (default known hosts of this name)")
	f.StringVar(&e.in, "in", "", "where in a request it may stand: header:NAME, query:NAME, path or body")
	f.StringVar(&e.expires, "expires", "", "when it is no longer given out: 30m, 24h, 90d, a date or a time")
	f.StringArrayVar(&e.tags, "tag", nil, "tag that list shows; may be repeated")
	f.BoolVar(&e.noHosts, "no-hosts", false, "do not bind it to the known hosts of this name")
	_ = c.RegisterFlagCompletionFunc("exposure", words("reveal", "use"))
}

// entry checks the flags and fills an entry without a value.
func (e *entryFlags) entry(label string, now time.Time) (vault.NewEntry, error) {
	out := vault.NewEntry{Hosts: e.hosts, Placement: e.in, Tags: e.tags}
	var err error
	if out.Label, err = vault.ParseLabel(label); err != nil {
		return out, failf(exitUsage, "not a label: %v", vault.ErrMalformedLabel)
	}
	if e.kind != "" {
		if out.Kind, err = vault.ParseKind(e.kind); err != nil {
			return out, failf(exitUsage, "--kind takes secret, login or totp")
		}
	}
	switch e.exposure {
	case "":
	case "reveal":
		out.Exposure = vault.ExposeReveal
	case "use":
		out.Exposure = vault.ExposeUse
	default:
		return out, failf(exitUsage, "--exposure takes reveal or use")
	}
	if e.in != "" && !placement(e.in) {
		return out, failf(exitUsage, "--in takes header:NAME, query:NAME, path or body")
	}
	for _, h := range e.hosts {
		if !hostName(h) {
			return out, failf(exitUsage, "--host takes a host name such as api.example.com, without scheme or path")
		}
	}
	out.Expires, err = parseEnd("--expires", e.expires, now)
	return out, err
}

func placement(s string) bool {
	if s == "path" || s == "body" {
		return true
	}
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "header", "query":
		return rest != "" && !strings.ContainsAny(rest, "\r\n")
	case "basic", "path":
		return rest != ""
	}
	return false
}

func hostName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsAny(s, "/ @?#\r\n\t") && !strings.Contains(s, "://")
}

// placementWords shortens a placement for people: `header Authorization`.
func placementWords(p string) string {
	kind, rest, ok := strings.Cut(p, ":")
	if !ok {
		return p
	}
	name, _, _ := strings.Cut(rest, ":")
	return kind + " " + name
}

type putFlags struct {
	entryFlags
	stdin      bool
	file       string
	fields     []string
	otp        bool
	raw        bool
	binary     bool
	everywhere bool
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
	c.Flags().StringVar(&f.kind, "kind", "", "secret, login or totp (default what the value looks like)")
	c.Flags().BoolVar(&f.stdin, "stdin", false, "read the value from stdin; with --field, one line each")
	c.Flags().StringVar(&f.file, "file", "", "read the value from this file")
	c.Flags().StringArrayVar(&f.fields, "field", nil, "further field of the entry, such as username; may be repeated")
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
	if err := a.readValues(ctx, &e, f); err != nil {
		return err
	}
	defer wipeFields(e.Fields)
	hint, err := f.judge(&e)
	if err != nil {
		return err
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

// readValues fills the fields of e from stdin, a file or the terminal.
func (a *app) readValues(ctx context.Context, e *vault.NewEntry, f putFlags) error {
	switch {
	case f.stdin:
		if isTerminal(a.stdin) {
			return failf(exitUsage, "stdin is a terminal; leave --stdin out for a hidden prompt")
		}
		return a.readStdin(e, f)
	case f.file != "":
		if err := a.readFile(e, f); err != nil {
			return err
		}
		if len(f.fields) == 0 {
			return a.checkValues(e, f)
		}
	}
	t, err := openTerminal()
	if err != nil {
		return needsFlag("the value is asked for hidden", "--stdin, or --file PATH")
	}
	defer t.Close()
	if err := a.askValues(ctx, t, e, f); err != nil {
		wipeFields(e.Fields)
		return err
	}
	return a.checkValues(e, f)
}

func (a *app) readStdin(e *vault.NewEntry, f putFlags) error {
	limit := (vault.MaxValue + 2) * (1 + len(f.fields))
	b, err := io.ReadAll(io.LimitReader(a.stdin, int64(limit)+1))
	if err != nil {
		return failf(exitUsage, "stdin cannot be read")
	}
	if len(f.fields) == 0 {
		e.Fields = []vault.Field{{Name: "value", Value: trimNewline(b, f.raw)}}
		return a.checkValues(e, f)
	}
	names := append([]string{"value"}, f.fields...)
	lines := bytes.SplitN(trimNewline(b, f.raw), []byte("\n"), len(names))
	if len(lines) != len(names) {
		return failf(exitUsage, "stdin has %s for %s", count(len(lines), "line"), count(len(names), "field"))
	}
	for i, name := range names {
		e.Fields = append(e.Fields, vault.Field{Name: name, Value: bytes.TrimSuffix(lines[i], []byte("\r"))})
	}
	return a.checkValues(e, f)
}

func (a *app) readFile(e *vault.NewEntry, f putFlags) error {
	file, err := os.Open(f.file)
	if err != nil {
		return failf(exitUsage, "--file: %v", err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, vault.MaxValue+3))
	if err != nil {
		return failf(exitUsage, "--file: %v", err)
	}
	e.Fields = append(e.Fields, vault.Field{Name: "value", Value: trimNewline(b, f.raw)})
	return nil
}

// trimNewline drops exactly one final newline.
func trimNewline(b []byte, raw bool) []byte {
	if raw {
		return b
	}
	if cut, ok := bytes.CutSuffix(b, []byte("\r\n")); ok {
		return cut
	}
	return bytes.TrimSuffix(b, []byte("\n"))
}

// askValues asks for what is missing, and for a code of a seed.
func (a *app) askValues(ctx context.Context, t *terminal, e *vault.NewEntry, f putFlags) error {
	if f.file == "" {
		what := "value for " + string(e.Label)
		switch e.Kind {
		case vault.KindTOTP:
			what = "otpauth:// URI or base32 secret for " + string(e.Label)
		case vault.KindLogin:
			what = "password for " + string(e.Label)
		}
		b, err := t.secret(ctx, what)
		if err != nil {
			return err
		}
		e.Fields = append(e.Fields, vault.Field{Name: "value", Value: b})
		becomeSeed(e, b)
	}
	if e.Kind == vault.KindTOTP {
		if err := a.enrol(ctx, t, e.Fields[0].Value); err != nil {
			return err
		}
		return t.settled()
	}
	names := f.fields
	if e.Kind == vault.KindLogin && len(names) == 0 {
		names = []string{"username", "url"}
	}
	for _, name := range names {
		b, err := askField(ctx, t, name, len(f.fields) == 0)
		if err != nil {
			return err
		}
		if len(b) > 0 || len(f.fields) > 0 {
			e.Fields = append(e.Fields, vault.Field{Name: name, Value: b})
		}
	}
	return t.settled()
}

// askField asks for a further field: visible where it is no secret.
func askField(ctx context.Context, t *terminal, name string, mayskip bool) ([]byte, error) {
	question := name
	if mayskip {
		question += " (Enter skips)"
	}
	switch name {
	case "username", "url", "email", "account":
		s, err := t.ask(ctx, question+": ")
		return []byte(s), err
	}
	return t.secret(ctx, question)
}

// becomeSeed makes the entry a totp one if nothing else was said and the
// value is plainly a seed: a seed must not become a readable secret.
func becomeSeed(e *vault.NewEntry, value []byte) {
	if e.Kind == 0 && len(value) <= maxKeyFile && totp.LooksLike(string(value)) == "totp" {
		e.Kind = vault.KindTOTP
	}
}

// enrolTries is how often a code may be typed; enrolSteps how far the clocks
// may be apart, in steps.
const (
	enrolTries = 3
	enrolSteps = 10
)

// enrol compares a code that a person types with the seed, before it is
// sealed: afterwards the owner cannot read it to find out.
func (a *app) enrol(ctx context.Context, t *terminal, text []byte) error {
	seed, err := totp.Parse(string(text))
	if err != nil {
		return seedError(err)
	}
	defer seed.Wipe()
	for range enrolTries {
		typed, err := t.ask(ctx, "type the code the site shows (Enter skips): ")
		if err != nil {
			return err
		}
		typed = strings.ReplaceAll(typed, " ", "")
		if typed == "" {
			return nil
		}
		if steps, ok := drift(seed, typed, a.now()); ok {
			if steps != 0 {
				t.printf("the code matches, but the clocks are about %s apart: check the time of this machine\n", time.Duration(max(steps, -steps))*seed.Period())
			}
			return nil
		}
		t.printf("this is not a code of that seed\n")
	}
	return &failure{exit: exitExists, word: "not_confirmed", message: "the codes do not match the seed; nothing was stored"}
}

// drift finds the step, counted from now, whose code was typed.
func drift(seed totp.Seed, typed string, now time.Time) (steps int, ok bool) {
	for n := 0; n <= enrolSteps; n++ {
		for _, s := range []int{n, -n} {
			code, err := seed.Code(now.Add(time.Duration(s) * seed.Period()))
			if err == nil && strings.EqualFold(code.Digits, typed) {
				return s, true
			}
		}
	}
	return 0, false
}

func seedError(err error) error {
	return failf(exitUsage, "%v", err).hint("store the otpauth:// URI or the base32 secret that the site shows")
}

// checkValues judges what was read.
func (a *app) checkValues(e *vault.NewEntry, f putFlags) error {
	for _, x := range e.Fields {
		name := string(e.Label)
		if x.Name != "value" {
			name += "#" + x.Name
		}
		switch {
		case len(x.Value) == 0:
			return failf(exitUsage, "%s: the value is empty", name)
		case len(x.Value) > vault.MaxValue:
			return failf(exitUsage, "%s: the value is longer than 64 KiB", name)
		case !f.binary && !utf8.Valid(x.Value):
			return failf(exitUsage, "%s: the value is not UTF-8", name).hint("--binary")
		}
		if len(bytes.TrimSpace(x.Value)) != len(x.Value) && e.Kind != vault.KindTOTP && !f.raw {
			a.warn("%s: the value starts or ends with a blank; it is kept", name)
		}
	}
	return nil
}

func wipeFields(fs []vault.Field) {
	for _, f := range fs {
		clear(f.Value)
	}
}

// judge settles the kind of an entry and the hosts that go with its name.
func (f *putFlags) judge(e *vault.NewEntry) (catalog.Hint, error) {
	value := e.Fields[0].Value
	becomeSeed(e, value)
	if e.Kind == 0 {
		switch totp.LooksLike(string(value[:min(len(value), maxKeyFile)])) {
		case "hotp":
			return catalog.Hint{}, failf(exitUsage, "counter-based codes are not supported")
		case "migration":
			return catalog.Hint{}, failf(exitUsage, "this holds several accounts: export one account at a time")
		}
		e.Kind = vault.KindSecret
	}
	if e.Kind == vault.KindTOTP {
		if f.exposure != "" {
			return catalog.Hint{}, failf(exitUsage, "this is a seed, which never leaves; --kind secret stores it as text")
		}
		seed, err := totp.Parse(string(value))
		if err != nil {
			return catalog.Hint{}, seedError(err)
		}
		defer seed.Wipe()
		return catalog.Hint{Notes: []string{seedWords(seed)}}, nil
	}
	if f.noHosts || f.binary {
		return catalog.Hint{}, nil
	}
	hint := catalog.Guess(string(e.Label), string(value), nil)
	if len(e.Hosts) == 0 {
		e.Hosts = hint.Hosts
		e.Placement = cmp.Or(e.Placement, hint.Placement)
	}
	return hint, nil
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
	if len(r.Notes) > 0 {
		rest += "  (" + strings.Join(r.Notes, "; ") + ")"
	}
	a.row("stored", "", rest)
	if r.Exposure == "use" && len(r.Hosts) == 0 {
		a.say("no host yet, so nothing can use it: put it again with --host HOST")
	}
}

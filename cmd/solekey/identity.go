package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

func identityCommand(a *app) *cobra.Command {
	return group("identity", "Create, list, show, rotate and revoke identities",
		"  solekey identity create claude-code\n  solekey identity revoke old-bot --reason \"laptop stolen\"",
		identityCreate(a), identityList(a), identityShow(a), identityRotate(a), identityRevoke(a))
}

func sortByName(all []vault.Info) {
	slices.SortFunc(all, func(x, y vault.Info) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), slices.Compare(x.ID[:], y.ID[:]))
	})
}

type createFlags struct {
	grant      grantFlags
	printKey   bool
	noRecovery bool
}

func identityCreate(a *app) *cobra.Command {
	var f createFlags
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an identity with an empty vault and its first key",
		Long: `Make an identity with an empty vault and its first key. The key goes into a
profile of the same name (--profile OTHER names it differently): into the OS
keyring, or a file readable by you alone. --print-key prints it instead, and
keeps no copy.`,
		Example: `  solekey identity create claude-code
  solekey identity create ci --scope list,read --labels 'deploy/*' --expires 90d
  solekey identity create batch --print-key | gh secret set SOLEKEY_API_KEY`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.createIdentity(cmd.Context(), args[0], f) },
	}
	f.grant.declare(c)
	c.Flags().BoolVar(&f.printKey, "print-key", false, "print the key on stdout and store it nowhere")
	c.Flags().BoolVar(&f.noRecovery, "no-recovery", false, "the recovery key cannot open this vault")
	return c
}

// keyResult is what a command that made a key says with --json.
type keyResult struct {
	Identity string   `json:"identity"`
	ID       string   `json:"id"`
	KeyID    string   `json:"key_id"`
	Scopes   []string `json:"scopes,omitempty"`
	Labels   []string `json:"labels,omitempty"`
	Expires  string   `json:"expires_at,omitempty"`
	Profile  string   `json:"profile,omitempty"`
	Stored   string   `json:"stored,omitempty"` // keyring or file
	Key      string   `json:"key,omitempty"`    // with --print-key only
	Ending   string   `json:"ending_key_id,omitempty"`
	EndsAt   string   `json:"ends_at,omitempty"`
}

func (a *app) createIdentity(ctx context.Context, name string, f createFlags) error {
	if identity.CheckName(name) != nil {
		return failf(exitUsage, "not a name: %v", identity.ErrMalformedName)
	}
	grant, err := f.grant.grant(a.now())
	if err != nil {
		return err
	}
	dir, err := a.conf.dataDir() // --profile names the profile to be made, not the store
	if err != nil {
		return err
	}
	k, err := a.openStore(dir)
	if err != nil {
		return err
	}
	defer k.Close()
	dest := freshDest(dir, identity.ID{}, name, cmp.Or(a.conf.profile, name))
	dest.print = f.printKey
	if err := dest.ready(a); err != nil {
		return err
	}
	if err := a.nameFree(ctx, k, name); err != nil {
		return err
	}
	key, err := k.Create(ctx, vault.NewIdentity{Name: name, Grant: grant, NoRecovery: f.noRecovery})
	if err != nil {
		return err
	}
	if err := dest.keep(a, key); err != nil {
		_, undo := k.Revoke(context.WithoutCancel(ctx), key.Identity(), vault.Revocation{Shred: true})
		return errors.Join(err, undo)
	}
	return a.created(dest, name, key, grant)
}

// nameFree says so early when an identity has the name.
func (a *app) nameFree(ctx context.Context, k *vault.Keeper, name string) error {
	all, err := k.Identities(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Name == name {
			f := failf(exitExists, "there is an identity %s already", name)
			if i.Status == identity.Revoked {
				f.message += ", revoked; its name is free once it is shredded"
				return f.hint("solekey identity revoke " + name + " --shred")
			}
			return f.hint("solekey identity show " + name)
		}
	}
	return nil
}

func (a *app) created(d keyDest, name string, key identity.Key, grant identity.Grant) error {
	if a.conf.asJSON {
		out := d.result(key, grant)
		out.Identity = name
		return a.writeJSON(out)
	}
	if d.print {
		a.say("identity  created    %s  key %s", name, key.Slot())
		return d.write(a, key)
	}
	a.row("identity", "created", fmt.Sprintf("%s  key %s  %s  (%s, profile %s)", name, key.Slot(), grantWords(grant), whereWords(d.src), d.prof.name))
	a.say("client: %s", clientSnippet(d.prof.name))
	a.say("next: solekey put LABEL --identity %s", name)
	return nil
}

// clientSnippet is the entry that most MCP clients take.
func clientSnippet(profile string) string {
	return fmt.Sprintf(`{"mcpServers":{"solekey":{"command":%q,"args":["mcp","--profile",%q]}}}`, executable(), profile)
}

func grantWords(g identity.Grant) string {
	s := g.Scopes.String()
	if len(g.Globs) > 0 {
		s += "  " + strings.Join(globWords(g.Globs), " ")
	}
	if !g.Expires.IsZero() {
		s += "  expires " + day(g.Expires)
	}
	return s
}

func identityList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List identities", Example: "  solekey identity list\n  solekey identity list --json",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listIdentities(cmd.Context()) },
	}
}

// identityRow is one identity in JSON.
type identityRow struct {
	Name     string   `json:"name,omitempty"`
	ID       string   `json:"id"`
	State    string   `json:"state"`
	Labels   int      `json:"labels"`
	Keys     int      `json:"keys"`
	Recovery bool     `json:"recovery"`
	Created  string   `json:"created_at,omitempty"`
	LastUsed string   `json:"last_used_at,omitempty"`
	Expires  string   `json:"expires_at,omitempty"` // when its last live key ends
	Slots    []keyRow `json:"key_list,omitempty"`   // show only

	Exposures map[string]int `json:"labels_by_exposure,omitempty"` // show only
}

// keyRow is one key in JSON.
type keyRow struct {
	KeyID    string   `json:"key_id"`
	Name     string   `json:"name,omitempty"`
	State    string   `json:"state"` // live, expired or closed
	Scopes   []string `json:"scopes"`
	Labels   []string `json:"labels,omitempty"`
	Created  string   `json:"created_at"`
	Expires  string   `json:"expires_at,omitempty"`
	LastUsed string   `json:"last_used_at,omitempty"`
	From     string   `json:"last_used_from,omitempty"`
	Profile  string   `json:"profile,omitempty"`
}

func (a *app) listIdentities(ctx context.Context) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	all, err := k.Identities(ctx)
	if err != nil {
		return err
	}
	sortByName(all)
	rows := make([]identityRow, 0, len(all))
	for _, i := range all {
		if i.Status == identity.Shredded && !a.conf.asJSON {
			continue // nothing but its ID is left
		}
		r, err := a.identityRow(ctx, k, i)
		if err != nil {
			return err
		}
		rows = append(rows, r)
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Identities []identityRow `json:"identities"`
			Count      int           `json:"count"`
		}{rows, len(rows)})
	}
	if len(rows) == 0 {
		a.say("no identity yet; next: solekey identity create NAME")
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{cmp.Or(r.Name, r.ID), r.State, fmt.Sprint(r.Labels), fmt.Sprint(r.Keys), cmp.Or(r.LastUsed, "-"), dayOf(r.Expires)})
	}
	a.table([]string{"NAME", "STATE", ">LABELS", ">KEYS", "LAST USED", "EXPIRES"}, cells)
	return nil
}

// dayOf shortens a time in JSON form.
func dayOf(s string) string {
	if len(s) < len(time.DateOnly) {
		return "-"
	}
	return s[:len(time.DateOnly)]
}

func (a *app) identityRow(ctx context.Context, k *vault.Keeper, i vault.Info) (identityRow, error) {
	r := identityRow{Name: i.Name, ID: i.ID.String(), State: i.Status.String(), Keys: i.Live(a.now()), Recovery: i.Recovery, Created: at(i.Created)}
	if i.Damaged {
		r.State = "damaged"
	}
	if i.Damaged || i.Status == identity.Shredded {
		return r, nil
	}
	labels, err := k.Labels(ctx, i.ID)
	if err != nil {
		return r, err
	}
	use, err := k.Usage(ctx, i.ID)
	if err != nil {
		return r, err
	}
	r.Labels, r.LastUsed, r.Expires = len(labels), at(use.Last.Last), at(lastEnd(i, a.now()))
	return r, nil
}

// lastEnd returns when the last live key ends; zero if one never does, or if
// none is live.
func lastEnd(i vault.Info, now time.Time) time.Time {
	var end time.Time
	for _, s := range i.Slots {
		switch e := s.Grant.Expires; {
		case s.Closed:
		case e.IsZero():
			return time.Time{}
		case now.Before(e) && e.After(end):
			end = e
		}
	}
	return end
}

func identityShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one identity and its keys", Example: "  solekey identity show ci",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.showIdentity(cmd.Context(), args[0]) },
	}
}

func (a *app) showIdentity(ctx context.Context, name string) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := k.Find(ctx, name)
	if err != nil {
		return err
	}
	r, err := a.identityRow(ctx, k, i)
	if err != nil {
		return err
	}
	if i.Damaged || i.Status == identity.Shredded {
		if a.conf.asJSON {
			return a.writeJSON(r)
		}
		a.row("name", "", fmt.Sprintf("%s   state %s", cmp.Or(i.Name, r.ID), r.State))
		return nil
	}
	labels, err := k.Labels(ctx, i.ID)
	if err != nil {
		return err
	}
	if r.Slots, err = a.keyRows(ctx, k, i); err != nil {
		return err
	}
	r.Exposures = map[string]int{}
	for _, l := range labels {
		r.Exposures[l.Exposure.String()]++
	}
	if a.conf.asJSON {
		return a.writeJSON(r)
	}
	fmt.Fprintf(a.stdout, "name %s   state %s   created %s   recovery %s   labels %s\n", i.Name, r.State, day(i.Created), yesNo(i.Recovery), byExposure(r.Exposures, len(labels)))
	for _, s := range r.Slots {
		fmt.Fprintln(a.stdout, keyLine(s))
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func byExposure(n map[string]int, all int) string {
	var parts []string
	for _, e := range []vault.Exposure{vault.ExposeReveal, vault.ExposeUse, vault.ExposeNever} {
		if c := n[e.String()]; c > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c, e))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", all, strings.Join(parts, ", "))
}

func keyLine(r keyRow) string {
	s := "key " + r.KeyID + "  " + strings.Join(r.Scopes, ",")
	if len(r.Labels) > 0 {
		s += "  " + strings.Join(r.Labels, " ")
	}
	switch {
	case r.State != "live":
		s += "  " + r.State
	case r.Expires != "":
		s += "  expires " + dayOf(r.Expires)
	}
	if r.LastUsed != "" {
		s += "  last used " + r.LastUsed + " from " + r.From
	}
	if r.Profile != "" {
		s += "  profile " + r.Profile
	}
	return s
}

// keyRows describes the keys of an identity, with the profiles on this
// machine that hold them.
func (a *app) keyRows(ctx context.Context, k *vault.Keeper, i vault.Info) ([]keyRow, error) {
	use, err := k.Usage(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	held := a.heldKeys(i.ID)
	out := make([]keyRow, 0, len(i.Slots))
	for _, s := range i.Slots {
		r := keyRow{
			KeyID: s.ID.String(), Name: s.Name, State: "live", Scopes: s.Grant.Scopes.Words(), Labels: globWords(s.Grant.Globs),
			Created: at(s.Created), Expires: at(s.Grant.Expires), Profile: held[s.ID],
		}
		if u := use.Slots[s.ID.String()]; !u.Last.IsZero() {
			r.LastUsed, r.From = at(u.Last), cmp.Or(u.From, "here")
		}
		switch {
		case s.Closed:
			r.State = "closed"
		case !s.Grant.Expires.IsZero() && !a.now().Before(s.Grant.Expires):
			r.State = "expired"
		}
		out = append(out, r)
	}
	return out, nil
}

// heldKeys tells which profile of this machine holds which key of an
// identity. Keys that cannot be read are left out.
func (a *app) heldKeys(id identity.ID) map[identity.SlotID]string {
	out := map[identity.SlotID]string{}
	all, err := a.profiles()
	if err != nil {
		return out
	}
	for _, p := range all {
		if p.ID != id.String() {
			continue
		}
		if in, err := a.profileKey(p.name); err == nil {
			out[in.key.Slot()] = p.name
		}
	}
	return out
}

type revokeFlags struct {
	shred   bool
	confirm string
	reason  string
	receipt string
}

func (f *revokeFlags) declare(c *cobra.Command) {
	c.Flags().StringVar(&f.reason, "reason", "", "why, for the receipt")
	c.Flags().StringVar(&f.receipt, "receipt", "", "also write the receipt to this new file")
}

func identityRevoke(a *app) *cobra.Command {
	var f revokeFlags
	c := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Close every key of an identity, at once and in every process",
		Long: `Close every key of an identity. Every call that starts later is refused, in
every process. The receipt says which values its keys were given: those still
work at their provider until they are rotated there.

--shred also destroys the vault for ever, in old copies of the database too.`,
		Example: `  solekey identity revoke old-bot --reason "laptop stolen"
  solekey identity revoke old-bot --shred --confirm old-bot`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.revokeIdentity(cmd.Context(), args[0], f) },
	}
	f.declare(c)
	c.Flags().BoolVar(&f.shred, "shred", false, "destroy the vault for ever")
	c.Flags().StringVar(&f.confirm, "confirm", "", "the name of the identity, to confirm --shred without a terminal")
	return c
}

func (a *app) revokeIdentity(ctx context.Context, name string, f revokeFlags) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := k.Find(ctx, name)
	if err != nil {
		return err
	}
	if i.Status == identity.Shredded {
		return failf(exitNotFound, "identity %s is shredded already", name)
	}
	if i.Status == identity.Revoked && !f.shred {
		return failf(exitExists, "identity %s is revoked already", name).hint("solekey identity revoke " + name + " --shred")
	}
	if err := a.confirmRevoke(ctx, i, name, f); err != nil {
		return err
	}
	r := vault.Revocation{Shred: f.shred, Reason: f.reason}
	return a.revoke(ctx, k, i, r, f.receipt)
}

func (a *app) confirmRevoke(ctx context.Context, i vault.Info, name string, f revokeFlags) error {
	if !f.shred {
		question := fmt.Sprintf("Close %s of %s?", count(i.Live(a.now()), "key"), name)
		if !i.Recovery {
			question = fmt.Sprintf("Close %s of %s? Without a recovery key nothing opens this vault again.", count(i.Live(a.now()), "key"), name)
		}
		return a.confirm(ctx, question)
	}
	if f.confirm != "" {
		if f.confirm != name {
			return errNotConfirmed
		}
		return nil
	}
	t, err := openTerminal()
	if err != nil {
		return needsFlag("--shred destroys a vault for ever", "--confirm "+name)
	}
	defer t.Close()
	answer, err := t.ask(ctx, "Type the identity name to destroy its vault: ")
	if err != nil {
		return err
	}
	if answer != name {
		return errNotConfirmed
	}
	return nil
}

// confirm asks on the terminal unless --yes answers.
func (a *app) confirm(ctx context.Context, question string) error {
	if a.conf.yes {
		return nil
	}
	t, err := openTerminal()
	if err != nil {
		return needsFlag(question, "--yes")
	}
	defer t.Close()
	ok, err := t.confirm(ctx, question)
	if err != nil {
		return err
	}
	if !ok {
		return errNotConfirmed
	}
	return nil
}

type rotateFlags struct {
	key      keyFlags
	grace    time.Duration
	printKey bool
}

// defaultGrace is how long a rotated key goes on, so that servers that run
// change over by themselves.
const defaultGrace = 10 * time.Minute

func identityRotate(a *app) *cobra.Command {
	f := rotateFlags{grace: defaultGrace}
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give an identity a new key and end the old one",
		Long: `Give an identity a new key in place of its current one. The vault stays as it
is. The proof is the key in the profile of the identity, which is updated, or
that of --api-key-file; then --print-key or --profile says where the new key
goes. The old key goes on for the grace, so that running servers change over.

A key that leaked is answered by revoke, not by rotate.`,
		Example: `  solekey identity rotate claude-code
  solekey identity rotate ci --api-key-file old.key --print-key --grace 1h`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.rotate(cmd.Context(), args[0], f) },
	}
	f.key.declare(c.Flags())
	c.Flags().Var(duration{&f.grace}, "grace", "how long the old key goes on; 0 ends it at once")
	c.Flags().BoolVar(&f.printKey, "print-key", false, "print the new key on stdout and store it nowhere")
	return c
}

func (a *app) rotate(ctx context.Context, name string, f rotateFlags) error {
	dir, err := a.conf.dataDir() // --profile names where the new key goes, not the store
	if err != nil {
		return err
	}
	k, err := a.openStore(dir)
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := k.Find(ctx, name)
	if err != nil {
		return err
	}
	if err := stillActive(i, name); err != nil {
		return err
	}
	old, err := a.proof(f.key, i.ID, name)
	if err != nil {
		return err
	}
	dest, err := a.newKeyDest(dir, i, old, f.printKey)
	if err != nil {
		return err
	}
	grace := f.grace
	if grace == 0 {
		grace = defaultGrace // ended below, once the new key is in its place
	}
	key, err := k.Rotate(ctx, i.ID, old.key, vault.Rotation{Grace: grace})
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := dest.keep(a, key); err != nil {
		_, undo := k.Revoke(ctx, i.ID, vault.Revocation{Slots: []identity.SlotID{key.Slot()}})
		return errors.Join(err, undo)
	}
	ends := a.now().Add(grace)
	if f.grace == 0 {
		if _, err := k.Revoke(ctx, i.ID, vault.Revocation{Slots: []identity.SlotID{old.key.Slot()}}); err != nil {
			return err
		}
		ends = a.now()
	}
	return a.rotated(dest, i, key, old.key.Slot(), ends, f.grace == 0)
}

func stillActive(i vault.Info, name string) error {
	if i.Damaged {
		return failf(exitUnavailable, "identity %s is damaged", name).hint("solekey doctor")
	}
	if i.Status != identity.Active {
		return &failure{exit: exitRefused, word: string(vault.Revoked), message: fmt.Sprintf("identity %s is %s", name, i.Status), try: []string{"solekey identity create OTHER"}}
	}
	return nil
}

func (a *app) rotated(d keyDest, i vault.Info, key identity.Key, old identity.SlotID, ends time.Time, now bool) error {
	if a.conf.asJSON {
		out := d.result(key, identity.Grant{})
		out.Identity, out.Ending, out.EndsAt = i.Name, old.String(), at(ends)
		return a.writeJSON(out)
	}
	ending := fmt.Sprintf("%s at %s; running servers change over by themselves", old, stamp(ends))
	if now {
		ending = fmt.Sprintf("%s now", old)
	}
	if d.print {
		a.say("%-8s  %-9s  %s", "key", "added", key.Slot())
		a.say("%-8s  %-9s  %s", "key", "ending", ending)
		return d.write(a, key)
	}
	verb := "updated"
	if d.fresh {
		verb = "made"
	}
	a.row("key", "added", fmt.Sprintf("%s (profile %s %s)", key.Slot(), d.prof.name, verb))
	a.row("key", "ending", ending)
	return nil
}

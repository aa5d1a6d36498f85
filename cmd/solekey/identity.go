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
	return group("identity", "Create, list, show, rotate, recover and revoke identities",
		"  solekey identity create claude-code\n  solekey identity revoke old-bot --reason \"laptop stolen\"",
		identityCreate(a), identityList(a), identityShow(a), identityRotate(a), identityRecover(a), identityRevoke(a))
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
	if err := a.nameFree(ctx, k, name); err != nil {
		return err // before its profile is found to be taken: the advice there is to remove it
	}
	dest := freshDest(dir, identity.ID{}, name, cmp.Or(a.conf.profile, name))
	dest.print = f.printKey
	if err := dest.ready(a); err != nil {
		return err
	}
	defer dest.release()
	key, err := k.Create(ctx, vault.NewIdentity{Name: name, Grant: grant, NoRecovery: f.noRecovery})
	if err != nil {
		return err
	}
	err = a.settleName(ctx, k, name, key.Identity())
	if err == nil {
		err = dest.keep(a, key)
	}
	if err != nil {
		_, undo := k.Revoke(context.WithoutCancel(ctx), key.Identity(), vault.Revocation{Shred: true})
		return errors.Join(err, undo)
	}
	return a.created(dest, name, key, grant)
}

// How long, and how often, the one of two new identities that stays looks
// whether the other is gone.
const (
	yieldLimit = 3 * time.Second
	yieldEvery = 20 * time.Millisecond
)

// settleName sees to it that of identities which commands made at the same
// time under one name one is left: that with the lowest ID. Who meets a lower
// one yields. Who meets only higher ones waits for them to yield; one that
// does not was finished before, so its name is taken.
func (a *app) settleName(ctx context.Context, k *vault.Keeper, name string, id identity.ID) error {
	taken := failf(exitExists, "another command made an identity %s at the same time; this one is undone", name).hint("solekey identity show " + name)
	limit, tick := time.NewTimer(yieldLimit), time.NewTicker(yieldEvery)
	defer limit.Stop()
	defer tick.Stop()
	for {
		all, err := a.active(ctx, k)
		if err != nil {
			return err
		}
		alone := true
		for _, i := range all {
			if i.Name != name || i.ID == id {
				continue
			}
			if slices.Compare(i.ID[:], id[:]) < 0 {
				return taken
			}
			alone = false
		}
		if alone {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return taken
		case <-tick.C:
		}
	}
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
	used, err := k.Usages(ctx)
	if err != nil {
		return err
	}
	rows := make([]identityRow, 0, len(all))
	for _, i := range all {
		if i.Status == identity.Shredded && !a.conf.asJSON {
			continue // nothing but its ID is left
		}
		r, err := a.identityRow(ctx, k, i, used[i.ID])
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

func (a *app) identityRow(ctx context.Context, k *vault.Keeper, i vault.Info, use vault.Usage) (identityRow, error) {
	r := identityRow{Name: i.Name, ID: i.ID.String(), State: i.Status.String(), Keys: i.Live(a.now()), Recovery: i.Recovery, Created: at(i.Created)}
	switch {
	case i.Damaged:
		r.State = "damaged"
	case i.Pending:
		r.State = "pending" // it takes over from one whose key leaked
	case !i.Heir.IsZero():
		r.State = "replaced"
	}
	if i.Damaged || i.Status == identity.Shredded {
		return r, nil
	}
	labels, err := k.Labels(ctx, i.ID)
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
	i, err := a.find(ctx, k, name)
	if err != nil {
		return err
	}
	r, err := a.identityRow(ctx, k, i, vault.Usage{}) // its keys say when they were used
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
	for _, s := range r.Slots { // times in UTC order as texts
		r.LastUsed = max(r.LastUsed, s.LastUsed)
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

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

func keyCommand(a *app) *cobra.Command {
	return group("key", "Add, list and revoke the keys of an identity",
		"  solekey key add ci --scope list --print-key --api-key-file ci.key\n  solekey key list ci\n  solekey key revoke ci 7f3a91c2",
		keyAdd(a), keyList(a), keyRevoke(a))
}

type addFlags struct {
	grant    grantFlags
	key      keyFlags
	printKey bool
}

func keyAdd(a *app) *cobra.Command {
	var f addFlags
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Give an identity one more key",
		Long: `Give an identity one more key, with its own scopes, label globs and end. The
proof is a current key of it: that of a profile on this machine, or of
--api-key-file. The new key goes to stdout (--print-key) or into a new
profile (--profile OTHER).`,
		Example: `  solekey key add ci --scope list,read --labels 'deploy/*' --expires 90d --print-key
  solekey key add claude-code --profile claude-laptop`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.addKey(cmd.Context(), args[0], f) },
	}
	f.grant.declare(c)
	f.key.declare(c.Flags())
	c.Flags().BoolVar(&f.printKey, "print-key", false, "print the key on stdout and store it nowhere")
	return c
}

func (a *app) addKey(ctx context.Context, name string, f addFlags) error {
	if !f.printKey && a.conf.profile == "" {
		return failf(exitUsage, "where does the new key go?").hint("the same command with --print-key", "the same command with --profile OTHER")
	}
	grant, err := f.grant.grant(a.now())
	if err != nil {
		return err
	}
	dir, err := a.conf.dataDir() // --profile names where the new key goes, not the store
	if err != nil {
		return err
	}
	k, err := a.openStore(dir)
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := a.find(ctx, k, name)
	if err != nil {
		return err
	}
	if err := stillActive(i, name); err != nil {
		return err
	}
	dest := freshDest(dir, i.ID, i.Name, a.conf.profile)
	dest.print = f.printKey
	if err := dest.ready(a); err != nil {
		return err
	}
	defer dest.release()
	old, err := a.proof(f.key, i.ID, name)
	if err != nil {
		return err
	}
	key, err := k.AddKey(ctx, i.ID, old.key, "", grant)
	if err != nil {
		return err
	}
	if err := dest.keep(a, key); err != nil {
		_, undo := k.Revoke(context.WithoutCancel(ctx), i.ID, vault.Revocation{Slots: []identity.SlotID{key.Slot()}})
		return errors.Join(err, undo)
	}
	return a.keyAdded(dest, key, grant)
}

func (a *app) keyAdded(d keyDest, key identity.Key, grant identity.Grant) error {
	if a.conf.asJSON {
		return a.writeJSON(d.result(key, grant))
	}
	if d.print {
		a.say("%-8s  %-9s  %s  %s", "key", "added", key.Slot(), grantWords(grant))
		return d.write(a, key)
	}
	a.row("key", "added", fmt.Sprintf("%s  %s  (%s, profile %s)", key.Slot(), grantWords(grant), whereWords(d.src), d.prof.name))
	return nil
}

func keyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list NAME", Short: "List the keys of an identity", Example: "  solekey key list ci",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.listKeys(cmd.Context(), args[0]) },
	}
}

func (a *app) listKeys(ctx context.Context, name string) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := a.find(ctx, k, name)
	if err != nil {
		return err
	}
	if i.Damaged || i.Status == identity.Shredded {
		return failf(exitNotFound, "identity %s has no keys left", name)
	}
	rows, err := a.keyRows(ctx, k, i)
	if err != nil {
		return err
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Identity string   `json:"identity"`
			Keys     []keyRow `json:"keys"`
			Count    int      `json:"count"`
		}{i.Name, rows, len(rows)})
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{r.KeyID, r.State, strings.Join(r.Scopes, ","), dash(strings.Join(r.Labels, " ")), dayOf(r.Expires), dash(r.LastUsed), dash(r.Profile)})
	}
	a.table([]string{"KEY", "STATE", "SCOPES", "LABELS", "EXPIRES", "LAST USED", "PROFILE"}, cells)
	return nil
}

func keyRevoke(a *app) *cobra.Command {
	var f revokeFlags
	c := &cobra.Command{
		Use:   "revoke NAME KEY",
		Short: "Close one key of an identity, at once and in every process",
		Long: `Close one key of an identity; its other keys go on. KEY is the 8 hex digits
that "key list" shows. The receipt says which values this key was given.`,
		Example: `  solekey key revoke ci 7f3a91c2 --reason "runner retired"`,
		Args:    usageArgs(cobra.ExactArgs(2)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.revokeKey(cmd.Context(), args[0], args[1], f) },
	}
	f.declare(c)
	return c
}

func (a *app) revokeKey(ctx context.Context, name, keyID string, f revokeFlags) error {
	k, err := a.patient(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := a.find(ctx, k, name)
	if err != nil {
		return err
	}
	var found []vault.SlotInfo
	for _, s := range i.Slots {
		if s.ID.String() == strings.ToLower(keyID) {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return failf(exitNotFound, "%s has no such key", name).hint("solekey key list " + name)
	}
	if found[0].Closed {
		return failf(exitExists, "key %s is closed already", found[0].ID)
	}
	question := fmt.Sprintf("Close key %s of %s?", found[0].ID, name)
	if i.Live(a.now()) == 1 {
		question = fmt.Sprintf("Close key %s, the last one of %s?", found[0].ID, name)
		if !i.Recovery {
			question += " Nothing opens its vault then."
		}
	}
	if err := a.confirm(ctx, question); err != nil {
		return err
	}
	return a.revoke(ctx, k, i, vault.Revocation{Slots: []identity.SlotID{found[0].ID}, Reason: f.reason}, f.receipt)
}

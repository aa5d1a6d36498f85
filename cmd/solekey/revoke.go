package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

type revokeFlags struct {
	shred   bool
	confirm string
	reason  string
	receipt string
}

func (f *revokeFlags) declare(c *cobra.Command) {
	c.Flags().StringVar(&f.reason, "reason", "", "`TEXT` for the receipt")
	c.Flags().StringVar(&f.receipt, "receipt", "", "also write the receipt to this new `FILE`")
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
	c.Flags().StringVar(&f.confirm, "confirm", "", "`NAME` of the identity, to confirm --shred without a terminal")
	return c
}

func (a *app) revokeIdentity(ctx context.Context, name string, f revokeFlags) error {
	k, err := a.patient(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := a.find(ctx, k, name)
	if err != nil {
		return err
	}
	if i.Status == identity.Shredded {
		return failf(exitNotFound, "identity %s is shredded already", name)
	}
	if !i.Heir.IsZero() && !f.shred {
		return unfinishedRotation(name)
	}
	if i.Status == identity.Revoked && !f.shred {
		return failf(exitExists, "identity %s is revoked already", name).hint("solekey identity revoke " + name + " --shred")
	}
	if err := a.confirmRevoke(ctx, i, name, f); err != nil {
		return err
	}
	r := vault.Revocation{Shred: f.shred, Reason: f.reason}
	if err := a.revoke(ctx, k, i, r, f.receipt); err != nil || !f.shred {
		return err
	}
	return a.shredBeside()
}

// shredBeside warns of the cells that a repair left beside the store.
func (a *app) shredBeside() error {
	dir, err := a.storeDir()
	if err != nil {
		return err
	}
	damaged, built := leftovers(dir)
	if built != "" {
		damaged = append(damaged, built)
	}
	for _, d := range damaged {
		a.warn("%s holds shred keys of before a repair: a vault that is older than that still opens there until you delete it", tilde(d))
	}
	return nil
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

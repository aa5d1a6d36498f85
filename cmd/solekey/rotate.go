package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

type rotateFlags struct {
	key      keyFlags
	grace    time.Duration
	printKey bool
	leaked   bool
	reason   string
	recovery recoveryFlags
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
If every key is lost, "identity recover" does it with the recovery key.

--leaked answers a key that others have. Every key of the identity is closed at
once, a new identity of the same name takes over every value, and the old vault
is destroyed, with a receipt that says what its keys were given. The proof is a
current key, the leaked one too, or the recovery key. A run that was
interrupted is finished by running it again.`,
		Example: `  solekey identity rotate claude-code
  solekey identity rotate ci --api-key-file old.key --print-key --grace 1h
  solekey identity rotate ci --leaked --reason "key in a public log"`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			if f.leaked {
				return a.rotateLeaked(cmd.Context(), args[0], f)
			}
			return a.rotate(cmd.Context(), args[0], f)
		},
	}
	f.key.declare(c.Flags())
	c.Flags().Var(duration{&f.grace}, "grace", "how long the old key goes on; 0 ends it at once")
	c.Flags().BoolVar(&f.printKey, "print-key", false, "print the new key on stdout and store it nowhere")
	c.Flags().BoolVar(&f.leaked, "leaked", false, "the key is known to others: close all keys now, move the values, destroy the old vault")
	c.Flags().StringVar(&f.reason, "reason", "", "`TEXT` for the receipt of --leaked")
	f.recovery.declare(c.Flags())
	return c
}

// check refuses flags that do not belong together.
func (f *rotateFlags) check(cmd *cobra.Command) error {
	switch {
	case f.leaked && cmd.Flags().Changed("grace"):
		return failf(exitUsage, "--leaked knows no --grace: every key is closed at once")
	case f.leaked && f.recovery.given() && (f.key.file != "" || f.key.fd >= 0):
		return errTwoKeys
	case !f.leaked && f.recovery.given():
		return failf(exitUsage, "the recovery key takes the place of no key").hint("solekey identity recover NAME", "solekey identity rotate NAME --leaked")
	case !f.leaked && f.reason != "":
		return failf(exitUsage, "--reason goes with --leaked")
	}
	return nil
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
	i, err := a.find(ctx, k, name)
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
	defer dest.release()
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
	end := ending{slot: old.key.Slot(), at: a.now().Add(grace)}
	if f.grace == 0 {
		if _, err := k.Revoke(ctx, i.ID, vault.Revocation{Slots: []identity.SlotID{old.key.Slot()}}); err != nil {
			return err
		}
		end.at, end.now = a.now(), true
		a.tellGraces(i, old.key.Slot())
	}
	return a.rotated(dest, i, key, end)
}

// tellGraces names the keys that end later although the owner wants the old
// one to end now: those of an earlier rotation, or of one that was interrupted.
func (a *app) tellGraces(i vault.Info, ended identity.SlotID) {
	for _, s := range i.Slots {
		if s.ID == ended || s.Closed || s.Grant.Expires.IsZero() || !a.now().Before(s.Grant.Expires) {
			continue
		}
		a.warn("another key, %s, goes on until %s; solekey key revoke %s %s ends it now", s.ID, stamp(s.Grant.Expires), i.Name, s.ID)
	}
}

// ending is a key that goes, and when.
type ending struct {
	slot identity.SlotID
	at   time.Time
	now  bool
}

// words describes the end.
func (e ending) words() string {
	if e.now {
		return e.slot.String() + " now"
	}
	return fmt.Sprintf("%s at %s; running servers change over by themselves", e.slot, stamp(e.at))
}

func stillActive(i vault.Info, name string) error {
	if i.Damaged {
		return failf(exitUnavailable, "identity %s is damaged", name).hint("solekey doctor")
	}
	if !i.Heir.IsZero() {
		return unfinishedRotation(name)
	}
	if i.Status == identity.Revoked && i.Recovery {
		return &failure{exit: exitRefused, word: string(vault.Revoked), message: fmt.Sprintf("identity %s is %s", name, i.Status), try: []string{"solekey identity recover " + name}}
	}
	if i.Status != identity.Active {
		return &failure{exit: exitRefused, word: string(vault.Revoked), message: fmt.Sprintf("identity %s is %s", name, i.Status), try: []string{"solekey identity create OTHER"}}
	}
	return nil
}

func (a *app) rotated(d keyDest, i vault.Info, key identity.Key, end ending) error {
	if a.conf.asJSON {
		out := d.result(key, identity.Grant{})
		out.Identity = i.Name
		out.Ending, out.EndsAt = end.slot.String(), at(end.at)
		return a.writeJSON(out)
	}
	if d.print {
		a.say("%-8s  %-9s  %s", "key", "added", key.Slot())
		a.say("%-8s  %-9s  %s", "key", "ending", end.words())
		return d.write(a, key)
	}
	verb := "updated"
	if d.fresh {
		verb = "made"
	}
	a.row("key", "added", fmt.Sprintf("%s (profile %s %s)", key.Slot(), d.prof.name, verb))
	a.row("key", "ending", end.words())
	return nil
}

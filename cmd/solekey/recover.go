package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
)

// recoveryFlags say where the recovery key comes from. Without them it is
// asked for, hidden.
type recoveryFlags struct {
	file string
	fd   int
}

func (f *recoveryFlags) declare(fs *pflag.FlagSet) {
	fs.StringVar(&f.file, "recovery-key-file", "", "`FILE` that holds the recovery key, readable by you alone")
	fs.IntVar(&f.fd, "recovery-key-fd", -1, "file descriptor `N` that the recovery key is read from")
}

func (f recoveryFlags) given() bool { return f.file != "" || f.fd >= 0 }

// recoveryKey reads the recovery key: from a file, a descriptor, or a hidden
// prompt on the terminal.
func (a *app) recoveryKey(ctx context.Context, f recoveryFlags) (identity.Key, error) {
	var b []byte
	var err error
	what := "--recovery-key-file"
	switch {
	case f.file != "" && f.fd >= 0:
		return identity.Key{}, failf(exitUsage, "two sources of the recovery key were given: use --recovery-key-file or --recovery-key-fd")
	case f.file != "":
		if b, err = keyring.ReadPrivate(f.file, maxKeyFile); err != nil {
			return identity.Key{}, failf(exitUsage, "--recovery-key-file: %v", err) // names a path and what is wrong with it
		}
	case f.fd >= 0:
		what = "--recovery-key-fd"
		if b, err = readDescriptor(f.fd); err != nil {
			return identity.Key{}, failf(exitUsage, "--recovery-key-fd: the descriptor cannot be read")
		}
	default:
		what = "the recovery key"
		t, err := openTerminal()
		if err != nil {
			return identity.Key{}, needsFlag("the recovery key is asked for hidden", "--recovery-key-file FILE, or --recovery-key-fd N")
		}
		defer t.Close()
		if b, err = t.secret(ctx, "recovery key"); err != nil {
			return identity.Key{}, err
		}
	}
	defer clear(b)
	key, err := identity.ParseKey(string(b))
	if err != nil {
		return identity.Key{}, failf(exitUsage, "%s: %v", what, err).hint("pass the whole key, as solekey init showed it: slr1_ and 75 characters")
	}
	if key.Kind() != identity.Recovery {
		return identity.Key{}, failf(exitUsage, "%s: this is an agent key, not the recovery key", what).hint("solekey identity rotate NAME --api-key-file FILE")
	}
	return key, nil
}

func readDescriptor(fd int) ([]byte, error) {
	f := os.NewFile(uintptr(fd), "recovery-key-fd")
	if f == nil {
		return nil, fs.ErrInvalid
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKeyFile))
}

type recoverFlags struct {
	grant    grantFlags
	key      recoveryFlags
	printKey bool
}

func identityRecover(a *app) *cobra.Command {
	var f recoverFlags
	c := &cobra.Command{
		Use:   "recover NAME",
		Short: "Bring an identity back whose keys are lost, with the recovery key",
		Long: `Give an identity a new key by the recovery key, which init showed once. It
serves an identity whose keys are lost, and brings a revoked one back: its
older keys stay closed. What is shredded stays shredded. The recovery key is
asked for hidden, or read from --recovery-key-file or --recovery-key-fd.

The new key goes into the profile of the identity (--profile OTHER), or to
stdout with --print-key. Other keys of an active identity go on.`,
		Example: `  solekey identity recover claude-code
  solekey identity recover ci --recovery-key-file /media/stick/recovery.txt --print-key`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeIdentities,
		RunE: func(cmd *cobra.Command, args []string) error { return a.recoverIdentity(cmd.Context(), args[0], f) },
	}
	f.grant.declare(c)
	f.key.declare(c.Flags())
	c.Flags().BoolVar(&f.printKey, "print-key", false, "print the new key on stdout and store it nowhere")
	return c
}

func (a *app) recoverIdentity(ctx context.Context, name string, f recoverFlags) error {
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
	if err := recoverable(i, name); err != nil {
		return err
	}
	dest, err := a.newPlace(dir, i, f.printKey)
	if err != nil {
		return err
	}
	defer dest.release()
	recovery, err := a.recoveryKey(ctx, f.key)
	if err != nil {
		return err
	}
	key, err := k.Recover(ctx, i.ID, recovery, grant)
	if err != nil {
		return a.explainRecovery(err, name)
	}
	if err := dest.keep(a, key); err != nil {
		_, undo := k.Revoke(context.WithoutCancel(ctx), i.ID, vault.Revocation{Slots: []identity.SlotID{key.Slot()}})
		return errors.Join(err, undo)
	}
	return a.recovered(dest, i, key, grant)
}

func recoverable(i vault.Info, name string) error {
	switch {
	case i.Damaged:
		return failf(exitUnavailable, "identity %s is damaged", name).hint("solekey doctor")
	case i.Status == identity.Shredded:
		return &failure{exit: exitRefused, word: string(vault.Revoked), message: fmt.Sprintf("identity %s is shredded: nothing of its vault is left", name), try: []string{"solekey identity create OTHER"}}
	case !i.Heir.IsZero():
		return unfinishedRotation(name)
	case !i.Recovery:
		return failf(exitRefused, "%s was made without recovery: nothing but its own keys opens its vault", name)
	}
	return nil
}

// explainRecovery words what the recovery key is refused for.
func (a *app) explainRecovery(err error, name string) error {
	if !errors.Is(err, vault.Unauthorized) {
		return err
	}
	return &failure{exit: exitRefused, word: string(vault.Unauthorized), message: "this is not the recovery key of this store; nothing was changed", try: []string{"solekey identity recover " + name}}
}

// newPlace decides where a key goes whose older ones are lost: stdout, the
// profile that --profile names, or the one that held the key of the identity.
// A profile whose key still admits its holder is not overwritten.
func (a *app) newPlace(dir string, i vault.Info, print bool) (keyDest, error) {
	prof := cmp.Or(a.conf.profile, i.Name)
	d := freshDest(dir, i.ID, i.Name, prof)
	d.print = print
	p, err := a.anyProfile(prof)
	if !print && err == nil && !p.remote() && p.ID == i.ID.String() {
		for slot, holder := range a.heldKeys(i.ID) {
			if holder == prof && admits(i, slot, a) {
				return d, failf(exitExists, "profile %s holds a live key of %s: nothing is lost", prof, i.Name).hint("solekey identity rotate "+i.Name, "the same command with --profile OTHER, or --print-key     (for one more key)")
			}
		}
		d.prof, d.fresh = p, false
		if in, err := a.keyOf(p); err == nil {
			d.src = in.src
		}
	}
	return d, d.ready(a)
}

// admits reports whether a key of an identity is live.
func admits(i vault.Info, slot identity.SlotID, a *app) bool {
	if i.Status != identity.Active {
		return false
	}
	for _, s := range i.Slots {
		if s.ID == slot {
			return !s.Closed && (s.Grant.Expires.IsZero() || a.now().Before(s.Grant.Expires))
		}
	}
	return false
}

func (a *app) recovered(d keyDest, i vault.Info, key identity.Key, grant identity.Grant) error {
	back := i.Status == identity.Revoked
	if a.conf.asJSON {
		out := d.result(key, grant)
		out.Identity = i.Name
		return a.writeJSON(out)
	}
	others := "no other key is live"
	switch live := i.Live(a.now()); {
	case back:
		others = "it was revoked; its older keys stay closed"
	case live > 0:
		others = fmt.Sprintf("%s goes on; end what is lost: solekey key revoke %s KEY", count(live, "older key"), i.Name)
	}
	if d.print {
		a.say("%-8s  %-9s  %s  %s", "key", "added", key.Slot(), grantWords(grant))
		a.say("%-8s  %-9s  %s", "identity", "recovered", i.Name+"; "+others)
		return d.write(a, key)
	}
	a.row("key", "added", fmt.Sprintf("%s  %s  (%s, profile %s)", key.Slot(), grantWords(grant), whereWords(d.src), d.prof.name))
	a.row("identity", "recovered", i.Name+"; "+others)
	if back {
		a.say("what its receipts name was given out and stays so: solekey receipt list")
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// rotateLeaked answers a leaked key: a new identity of the same name takes
// over every value, and the old one is shredded. Running it again finishes
// what was interrupted.
func (a *app) rotateLeaked(ctx context.Context, name string, f rotateFlags) error {
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
	if i.Damaged || i.Status == identity.Shredded {
		return stillActive(i, name)
	}
	proof, err := a.leakProof(ctx, i, name, f)
	if err != nil {
		return err
	}
	finishing := handedOver(i) || !proof.key.IsZero() && proof.key.Identity() == i.Heir
	var dest keyDest
	if !finishing {
		if dest, err = a.heirDest(dir, i, proof, f.printKey); err != nil {
			return err
		}
		defer dest.release()
		question := fmt.Sprintf("Close %s of %s, move its values to a new vault and destroy this one?", count(i.Live(a.now()), "key"), name)
		if err := a.confirm(ctx, question); err != nil {
			return err
		}
	}
	return a.replace(ctx, k, dir, i, proof.key, dest, f)
}

// handedOver reports an heir whose key is with its holder, so that no other is
// made. One that was revoked since is replaced like any identity.
func handedOver(i vault.Info) bool { return !i.Replaces.IsZero() && i.Status == identity.Active }

// leakProof returns the key that opens the old vault, or the heir's, which a
// run before has handed over. What is past that needs none.
func (a *app) leakProof(ctx context.Context, i vault.Info, name string, f rotateFlags) (intake, error) {
	if f.recovery.given() {
		key, err := a.recoveryKey(ctx, f.recovery)
		return intake{key: key, from: "the recovery key"}, err
	}
	if handedOver(i) {
		return intake{}, nil
	}
	in, err := a.proof(f.key, i.ID, name)
	if err == nil || f.key.file != "" || f.key.fd >= 0 {
		return in, err
	}
	if !i.Heir.IsZero() {
		if in, err := a.proof(f.key, i.Heir, name); err == nil {
			return in, nil
		}
	}
	if t, termErr := openTerminal(); termErr == nil && i.Recovery {
		t.Close()
		key, err := a.recoveryKey(ctx, f.recovery)
		return intake{key: key, from: "the recovery key"}, err
	}
	return intake{}, failf(exitRefused, "moving the values of %s needs a current key of it, the leaked one too, or the recovery key: the owner cannot open this vault", name).
		hint("solekey identity rotate "+name+" --leaked --recovery-key-file FILE", "solekey identity revoke "+name+"     (closes the keys at once; the values wait for the recovery key)")
}

// heirDest decides where the new key goes: stdout, the profile that --profile
// names, the one that the proof came from, or that of the identity's name.
func (a *app) heirDest(dir string, i vault.Info, proof intake, print bool) (keyDest, error) {
	d := keyDest{print: print, prof: proof.prof, src: proof.src}
	if print {
		d.prof.Identity = i.Name
		return d, nil
	}
	if proof.prof.name != "" && (a.conf.profile == "" || a.conf.profile == proof.prof.name) {
		return d, d.ready(a)
	}
	name := a.conf.profile
	if name == "" {
		name = i.Name
	}
	if p, err := a.anyProfile(name); err == nil && !p.remote() && (p.ID == i.ID.String() || !i.Heir.IsZero() && p.ID == i.Heir.String()) {
		d.prof = p
		if in, err := a.keyOf(p); err == nil {
			d.src = in.src
		}
		return d, d.ready(a)
	}
	d = freshDest(dir, i.ID, i.Name, name)
	return d, d.ready(a)
}

func (a *app) replace(ctx context.Context, k *vault.Keeper, dir string, i vault.Info, proof identity.Key, dest keyDest, f rotateFlags) error {
	ctx = context.WithoutCancel(ctx) // from the first commit on the old keys are closed
	path := ""
	handed := identity.Key{}
	out, err := k.Replace(ctx, i.ID, proof, vault.Replacement{
		Reason: f.reason,
		Hand: func(key identity.Key) error {
			handed = key
			if dest.print {
				return a.handOver(dest, key)
			}
			return dest.keep(a, key)
		},
		Keep: func(rec vault.Receipt) error {
			kept, err := keepReceipt(dir, rec)
			path = kept
			return err
		},
	})
	if err != nil {
		if errors.Is(err, vault.Unauthorized) && !proof.IsZero() && proof.Kind() == identity.Recovery {
			return a.explainRecovery(err, i.Name)
		}
		return a.unfinishedLeak(ctx, k, i, err)
	}
	return a.replacedReport(out, i, dest, handed, path)
}

// handOver prints the key. With --json the object is printed here already:
// the key must be out before the old vault is destroyed.
func (a *app) handOver(d keyDest, key identity.Key) error {
	if !a.conf.asJSON {
		return d.write(a, key)
	}
	return a.writeJSON(d.result(key, identity.Grant{}))
}

// unfinishedLeak adds how to go on to the error of a replacement that was cut
// off.
func (a *app) unfinishedLeak(ctx context.Context, k *vault.Keeper, i vault.Info, err error) error {
	now, findErr := k.Find(ctx, i.ID.String())
	if findErr != nil || now.Heir.IsZero() {
		return err
	}
	out := *explain(err)
	out.message += "; every key of " + i.Name + " is closed and no value is lost"
	out.try = append([]string{"solekey identity rotate " + i.Name + " --leaked     (again: it finishes)"}, out.try...)
	return &out
}

func (a *app) replacedReport(out vault.Replaced, i vault.Info, d keyDest, key identity.Key, path string) error {
	if a.conf.asJSON {
		if d.print && !key.IsZero() {
			return nil // printed when the key was handed over
		}
		return a.writeJSON(struct {
			Identity string        `json:"identity"`
			ID       string        `json:"id"`
			Replaced string        `json:"replaced_id"`
			KeyID    string        `json:"key_id"`
			Profile  string        `json:"profile,omitempty"`
			Labels   int           `json:"labels"`
			Resumed  bool          `json:"resumed"`
			Receipt  vault.Receipt `json:"receipt"`
		}{i.Name, out.ID.String(), out.Old.String(), out.Slot.String(), d.prof.name, out.Labels, out.Resumed, out.Receipt})
	}
	saved := *a
	if d.print {
		saved.stdout = a.stderr // stdout holds the key and nothing else
	}
	if !key.IsZero() && !d.print {
		saved.row("key", "added", fmt.Sprintf("%s  (%s, profile %s)", out.Slot, whereWords(d.src), d.prof.name))
	}
	if out.Resumed {
		saved.row("identity", "finished", fmt.Sprintf("%s has a new vault with %s; key %s was handed over before", i.Name, count(out.Labels, "label"), out.Slot))
		saved.say("an interrupted rotation was finished; if that key leaked as well, run it again")
	} else {
		saved.row("identity", "replaced", fmt.Sprintf("%s has a new vault with %s", i.Name, count(out.Labels, "label")))
	}
	if path != "" {
		saved.printReceipt(out.Receipt, i, path)
	}
	a.sayStale(out.Old.String())
	return nil
}

// unfinishedRotation refuses what must wait for a replacement to be finished.
func unfinishedRotation(name string) error {
	return failf(exitExists, "every key of %s is closed, and its rotation after a leak is not finished", name).hint("solekey identity rotate " + name + " --leaked")
}

// sayStale names the profiles of this machine whose key is closed for good.
func (a *app) sayStale(id string) {
	all, err := a.profiles()
	if err != nil {
		return
	}
	for _, p := range all {
		if p.ID == id {
			a.say("profile %s holds a key of the old vault, which opens nothing: solekey profile rm %s", p.name, p.name)
		}
	}
}

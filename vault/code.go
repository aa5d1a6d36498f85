package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// maxWait bounds how long a call waits for the next step: clients give up at
// about 60 s.
const maxWait = 35 * time.Second

// errStep is inside: the current step cannot be given out, but a later one
// can.
type errStep struct{ until time.Time }

func (*errStep) Error() string { return "the code of this step cannot be given out" }

// Code releases the current code of a TOTP entry (RFC 6238), valid for at
// least atLeast, which must be shorter than the period. A code is given out
// once per step and entry, across all processes: the step is committed before
// Code returns. A spent or nearly spent step is waited out, for at most 35 s;
// a longer wait is refused with rate_limited and the time to wait. After a
// wait the key is judged again.
func (v *Vault) Code(ctx context.Context, l Label, atLeast time.Duration) (totp.Code, error) {
	deadline := v.keeper.now().Add(maxWait)
	for conflicts := 0; ; {
		code, err := v.codeNow(ctx, l, atLeast, deadline)
		var step *errStep
		switch {
		case errors.As(err, &step):
			if err := v.wait(ctx, step.until.Sub(v.keeper.now())); err != nil {
				return totp.Code{}, v.Deny(context.WithoutCancel(ctx), audit.Code, Refuse(err))
			}
		case errors.Is(err, storage.ErrConflict) && conflicts < 16:
			conflicts++
		case err != nil:
			return totp.Code{}, v.suggest(ctx, err, l)
		default:
			return code, nil
		}
	}
}

func (v *Vault) wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// codeNow gives out the code of the current step, errStep if a later one must
// be waited for, or a refusal. Only what ends the call leaves a line.
func (v *Vault) codeNow(ctx context.Context, l Label, atLeast time.Duration, deadline time.Time) (totp.Code, error) {
	st, err := v.keeper.open(ctx, 0)
	if err != nil {
		return totp.Code{}, err
	}
	a := ask{event: audit.Code, scope: identity.Code, label: l, tag: st.Tag(v.key.Identity(), string(l)), totp: true}
	stateKey := seal.StateKey(a.tag)
	w, r, err := v.rule(ctx, a, seal.EntryKey(a.tag), stateKey)
	if err != nil {
		return totp.Code{}, err
	}
	defer w.wipe()
	now := v.keeper.now()
	rec := v.record(w, r, a)
	var code totp.Code
	var b storage.Batch
	if r.refusal == nil {
		code, b, err = v.nextCode(w, r, stateKey, now, atLeast, deadline, &rec)
		var step *errStep
		if errors.As(err, &step) {
			return totp.Code{}, err
		}
		if err != nil {
			r.refusal = Refuse(err)
		}
	}
	if err := v.append(ctx, r, rec); err != nil {
		return totp.Code{}, err
	}
	if r.refusal != nil {
		return totp.Code{}, r.refusal
	}
	if _, err := v.keeper.backend.Commit(ctx, w.id, w.rev, b); err != nil {
		return totp.Code{}, err
	}
	v.keeper.committed(w, b.Ops)
	return code, nil
}

// nextCode derives the code of now and the commit that spends its step.
func (v *Vault) nextCode(w *view, r ruling, stateKey string, now time.Time, atLeast time.Duration, deadline time.Time, rec *audit.Record) (totp.Code, storage.Batch, error) {
	seed, err := v.seed(w, r)
	if err != nil {
		return totp.Code{}, storage.Batch{}, err
	}
	defer seed.Wipe()
	if atLeast >= seed.Period() {
		return totp.Code{}, storage.Batch{}, refuse(BadRequest, fmt.Sprintf("Argument min_remaining must be less than the period of %d seconds.", int(seed.Period().Seconds())), "Repeat the call with a smaller min_remaining.")
	}
	code, err := seed.Code(now)
	if err != nil {
		return totp.Code{}, storage.Batch{}, err
	}
	var state seal.EntryState
	if sealed, ok := w.vals[stateKey]; ok {
		if state, err = w.outer.OpenState(stateKey, sealed); err != nil {
			return totp.Code{}, storage.Batch{}, errDamaged
		}
	}
	// The state remembers when the last window began, not its number: a seed
	// that is stored again may have another period.
	from := uint64(code.From.Unix())
	switch {
	case state.LastFrom > uint64(now.Unix()):
		return totp.Code{}, storage.Batch{}, refuse(Unavailable, "The clock of this machine went back; a code could be given out twice.", "Tell the owner to set the clock, then repeat this call.")
	case state.LastFrom >= from && state.Uses > 0, code.Until.Sub(now) < atLeast:
		if code.Until.After(deadline) {
			return totp.Code{}, storage.Batch{}, &Refusal{Word: RateLimited, Message: "This code was already given out, or is about to end.", Hint: "Repeat this call after the wait.", RetryAfter: code.Until.Sub(now)}
		}
		return totp.Code{}, storage.Batch{}, &errStep{until: code.Until}
	}
	c := change{event: audit.Code}
	if err := c.putState(w, stateKey, seal.EntryState{LastFrom: from, Uses: state.Uses + 1}); err != nil {
		return totp.Code{}, storage.Batch{}, err
	}
	b, err := v.keeper.seal(w, &c, rec)
	return code, b, err
}

// seed opens the seed of an entry. It stays inside: a [totp.Seed] has no way
// back to its text.
func (v *Vault) seed(w *view, r ruling) (totp.Seed, error) {
	in, err := unwrap(w, r.slot, v.key)
	if err != nil {
		return totp.Seed{}, err
	}
	defer in.Wipe()
	fields, err := w.fields(in, r.entry)
	if err != nil {
		return totp.Seed{}, err
	}
	defer wipe(fields)
	for _, f := range fields {
		if f.Name == primary {
			seed, err := totp.Parse(string(f.Value))
			if err != nil {
				return totp.Seed{}, errDamaged
			}
			return seed, nil
		}
	}
	return totp.Seed{}, errDamaged
}

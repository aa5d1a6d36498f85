package vault

import (
	"context"
	"time"

	"github.com/solekey/solekey/vault/audit"
)

// Checkpoint verifies the log as [Keeper.VerifyAuditAgainst] does and returns
// a signed statement of its head, to be kept where who can change the data
// directory cannot. It is nil if anything was found: a log that is wrong is
// not signed. Nothing is written.
func (k *Keeper) Checkpoint(ctx context.Context, o Outside) (note []byte, rep audit.Report, err error) {
	rep, err = k.VerifyAuditAgainst(ctx, o)
	if err != nil || !rep.OK() {
		return nil, rep, err
	}
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, rep, err
	}
	c := audit.Checkpoint{
		Store: st.Fingerprint(st.record.RecoveryPK), Seq: rep.First + uint64(rep.Lines) - 1, Hash: rep.Head,
		Time: k.now().UTC().Truncate(time.Second),
	}
	return st.SignNote(c.Signer(), c.Text()), rep, nil
}

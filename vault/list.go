package vault

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/vault/audit"
)

// Labels lists the entries that this key covers and that start with prefix,
// in byte order, without values. Its one audit line carries their number.
func (v *Vault) Labels(ctx context.Context, prefix string) ([]LabelInfo, error) {
	if !labelText(prefix) {
		return nil, v.Deny(ctx, audit.List, refuse(BadRequest, "Argument prefix must be label text: up to 128 of A-Z, a-z, 0-9 and . _ / -.", "Leave prefix out to list all labels."))
	}
	a := ask{event: audit.List, scope: identity.List}
	w, es, err := v.keeper.listing(ctx, v.key.Identity(), func(w *view) bool { return judge(w, v.key, a, v.keeper.now()).slot != nil })
	if err != nil {
		return nil, err
	}
	defer w.wipe()
	r := judge(w, v.key, a, v.keeper.now())
	rec := v.record(w, r, a)
	var out []LabelInfo
	if r.refusal == nil {
		grant := grantOf(r.slot)
		out = infos(es, func(e *seal.Entry) bool { return grant.Covers(e.Label) && strings.HasPrefix(e.Label, prefix) })
		rec.N = len(out)
	}
	if err := v.append(ctx, r, rec); err != nil {
		return nil, err
	}
	if r.refusal != nil {
		return nil, r.refusal
	}
	if err := v.release(ctx, w, a, nil); err != nil {
		return nil, err
	}
	return out, nil
}

// Labels lists the entries of an identity to its owner, in byte order. The
// owner's listing opens no inner lock and leaves no audit line.
func (k *Keeper) Labels(ctx context.Context, id identity.ID) ([]LabelInfo, error) {
	w, es, err := k.listing(ctx, id, nil)
	if err != nil {
		return nil, err
	}
	defer w.wipe()
	if err := w.exists(); err != nil {
		return nil, err
	}
	return infos(es, func(*seal.Entry) bool { return true }), nil
}

// infos describes the entries that keep holds for, without removed ones.
func infos(es []*seal.Entry, keep func(*seal.Entry) bool) []LabelInfo {
	out := make([]LabelInfo, 0, len(es))
	for _, e := range es {
		if e.Form != formNone && keep(e) {
			out = append(out, infoOf(e))
		}
	}
	slices.SortFunc(out, func(a, b LabelInfo) int { return cmp.Compare(a.Label, b.Label) })
	return out
}

// extra is the part of an entry's meta that is JSON.
type extra struct {
	Placement string `json:"placement,omitempty"`
}

func infoOf(e *seal.Entry) LabelInfo {
	var x extra
	if len(e.Extra) > 0 {
		_ = json.Unmarshal(e.Extra, &x) // it was sealed by us; what is missing reads as empty
	}
	return LabelInfo{
		Label: Label(e.Label), Kind: EntryKind(e.Kind), Exposure: exposureOf(e), HasTOTP: EntryKind(e.Kind) == KindTOTP,
		Version: e.Version, Fields: e.Fields, Hosts: e.Hosts, Placement: x.Placement, Tags: e.Tags,
		Created: fromMillis(e.Created), Updated: fromMillis(e.Updated), Expires: fromMillis(e.Expires),
		Unread: e.Form == formMailbox,
	}
}

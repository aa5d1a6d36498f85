package vault

import (
	"context"
	"fmt"
	"slices"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// MaxValue is the greatest length of a field in bytes, MaxLabels how many
// labels a vault may ever have held, removed ones included.
const (
	MaxValue  = 64 << 10
	MaxLabels = 4096
)

// Put stores one more version of an entry. The value is sealed to the public
// key of the identity: the owner cannot read it back. It returns when line
// and commit are durable.
func (k *Keeper) Put(ctx context.Context, id identity.ID, e NewEntry) (Stored, error) {
	out, err := k.Import(ctx, id, []NewEntry{e}, true)
	if err != nil {
		return Stored{}, err
	}
	return out[0], nil
}

// Import stores many entries in one commit: all or nothing. A label that
// exists gets one more version with replace, else it is skipped. Labels must
// not repeat.
func (k *Keeper) Import(ctx context.Context, id identity.ID, es []NewEntry, replace bool) ([]Stored, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	if err := checkEntries(es, st.record.DefaultExposure); err != nil {
		return nil, err
	}
	keys := make([]string, len(es))
	for i, e := range es {
		keys[i] = seal.EntryKey(st.Tag(id, string(e.Label)))
	}
	var out []Stored
	w, err := k.update(ctx, id, nil, false, func(w *view, c *change) error {
		out = out[:0]
		if w.replaced() || w.pending() {
			return errReplaced
		}
		if err := k.more(ctx, w, keys); err != nil {
			return err
		}
		*c = change{event: audit.Put}
		for i, e := range es {
			s, err := k.putOne(w, c, keys[i], e, replace)
			if err != nil {
				return err
			}
			out = append(out, s)
		}
		if len(c.ops) == 0 {
			return errNothing
		}
		if int(w.head.Count) >= 2*MaxLabels {
			return refuse(BadRequest, fmt.Sprintf("A vault holds at most %d labels, removed ones included.", MaxLabels), "Create another identity for the rest.")
		}
		c.n = len(c.ops)
		return nil
	})
	w.wipe()
	if err != nil {
		return nil, err
	}
	return out, nil
}

// more loads further records of w, in as many reads as the engine's limit
// takes. An identity that changed meanwhile is a conflict.
func (k *Keeper) more(ctx context.Context, w *view, keys []string) error {
	w.asked = append(w.asked, keys...)
	for part := range slices.Chunk(keys, storage.MaxKeys) {
		res, err := k.backend.Get(ctx, w.id, part...)
		if err != nil {
			return fmt.Errorf("reading entries: %w", err)
		}
		if res.Rev != w.rev {
			return storage.ErrConflict
		}
		for key, val := range res.Vals {
			if w.vals == nil {
				w.vals = make(map[string][]byte, len(keys))
			}
			w.vals[key] = val
		}
	}
	return k.checkSet(ctx, w)
}

func (k *Keeper) putOne(w *view, c *change, key string, n NewEntry, replace bool) (Stored, error) {
	old, err := w.entry(n.Label, w.tag(n.Label))
	if err != nil {
		return Stored{}, err
	}
	now := millis(k.now())
	e := &seal.Entry{
		Version: 1, Kind: uint8(n.Kind), Exposure: uint8(n.Exposure), Cap: uint8(n.Exposure), Form: formMailbox, Created: now, Updated: now,
		Expires: millis(n.Expires), Label: string(n.Label), Hosts: n.Hosts, Tags: n.Tags,
	}
	if old != nil {
		if old.Form != formNone && !replace {
			return Stored{Label: n.Label, Version: old.Version, Skipped: true}, nil
		}
		e.Version = old.Last + 1
		if old.Form != formNone {
			e.Created = old.Created
		}
	}
	e.Last = e.Version
	if e.Extra, err = sealExtra(extra{Placement: n.Placement}); err != nil {
		return Stored{}, err
	}
	fields := make([]seal.Field, len(n.Fields))
	for i, f := range n.Fields {
		fields[i] = seal.Field{Name: f.Name, Value: f.Value}
		if f.Never || n.Kind == KindTOTP {
			fields[i].Class = classNever
		}
		if fields[i].Class != classNever {
			e.Fields = append(e.Fields, f.Name)
		}
	}
	slices.Sort(e.Fields)
	if e.Inner, err = seal.SealMailbox(w.head.PK, w.bind(e.Label, e.Version, e.Kind, e.Exposure), fields); err != nil {
		return Stored{}, fmt.Errorf("sealing a value: %w", err)
	}
	if err := c.putEntry(w, key, e); err != nil {
		return Stored{}, fmt.Errorf("sealing an entry: %w", err)
	}
	c.labels = append(c.labels, audit.Ref{Tag: w.tag(n.Label), Version: e.Version})
	return Stored{Label: n.Label, Version: e.Version}, nil
}

// checkEntries fills in defaults and refuses what cannot be stored, before
// anything is read. Refusals name the label, never the value.
func checkEntries(es []NewEntry, exposure uint8) error {
	if len(es) == 0 {
		return refuse(BadRequest, "There is nothing to store.", "")
	}
	if len(es) > MaxLabels {
		return refuse(BadRequest, fmt.Sprintf("At most %d entries are stored at once.", MaxLabels), "Split the file.")
	}
	seen := make(map[Label]bool, len(es))
	for i := range es {
		e := &es[i]
		if _, err := ParseLabel(string(e.Label)); err != nil {
			return err
		}
		if seen[e.Label] {
			return refuse(BadRequest, fmt.Sprintf("%s is given twice.", e.Label), "Store each label once.")
		}
		seen[e.Label] = true
		if err := e.complete(Exposure(exposure)); err != nil {
			return err
		}
	}
	return nil
}

func (e *NewEntry) complete(exposure Exposure) error {
	bad := func(format string, args ...any) error {
		return refuse(BadRequest, string(e.Label)+": "+fmt.Sprintf(format, args...), "")
	}
	if e.Kind == 0 {
		e.Kind = KindSecret
	}
	if e.Exposure == 0 {
		e.Exposure = exposure
	}
	if e.Kind == KindTOTP {
		e.Exposure = ExposeNever
	}
	if e.Kind > KindTOTP || e.Exposure > ExposeNever {
		return bad("unknown kind or exposure.")
	}
	if !slices.ContainsFunc(e.Fields, func(f Field) bool { return f.Name == primary }) {
		return bad("the field `value` is missing.")
	}
	names := make(map[string]bool, len(e.Fields))
	for i, f := range e.Fields {
		if slices.Contains(neverFields, f.Name) {
			e.Fields[i].Never = true
		}
		switch {
		case !fieldName(f.Name):
			return bad("a field name is 1 to 32 of a-z, 0-9 and _.")
		case names[f.Name]:
			return bad("field %s is given twice.", f.Name)
		case len(f.Value) == 0:
			return bad("field %s is empty.", f.Name)
		case len(f.Value) > MaxValue:
			return bad("field %s is longer than %d bytes.", f.Name, MaxValue)
		}
		names[f.Name] = true
		if e.Kind == KindTOTP && f.Name == primary {
			seed, err := totp.Parse(string(f.Value))
			if err != nil {
				return &Refusal{Word: BadRequest, Message: string(e.Label) + ": " + err.Error() + ".", Hint: "Store the otpauth:// URI or the base32 secret that the site shows.", cause: err}
			}
			seed.Wipe()
		}
	}
	for _, t := range e.Tags {
		if t == "" || len(t) > 64 || !labelText(t) {
			return bad("a tag is 1 to 64 of A-Z, a-z, 0-9 and . _ / -.")
		}
	}
	return nil
}

// neverFields are the names whose values never leave, whatever the caller says.
var neverFields = []string{"seed", "otp", "totp", "backup_codes", "recovery_codes", "private_key"}

func fieldName(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// Remove removes entries, all or none, and returns what they were. The record
// of a removed label stays, without a value, so that its version counter
// never starts again.
func (k *Keeper) Remove(ctx context.Context, id identity.ID, labels ...Label) ([]LabelInfo, error) {
	st, err := k.open(ctx, 0)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(labels))
	for i, l := range labels {
		keys[i] = seal.EntryKey(st.Tag(id, string(l)))
	}
	var out []LabelInfo
	w, err := k.update(ctx, id, nil, false, func(w *view, c *change) error {
		out = out[:0]
		if w.replaced() || w.pending() {
			return errReplaced
		}
		if err := k.more(ctx, w, keys); err != nil {
			return err
		}
		*c = change{event: audit.Remove}
		for i, l := range labels {
			e, err := w.entry(l, w.tag(l))
			if err != nil {
				return err
			}
			if e == nil || e.Form == formNone {
				return refuse(NotFound, fmt.Sprintf("There is no label %s in this vault.", l), "solekey list")
			}
			out = append(out, infoOf(e))
			c.labels = append(c.labels, audit.Ref{Tag: w.tag(l), Version: e.Version})
			gone := &seal.Entry{Version: e.Version, Last: e.Last, Kind: e.Kind, Exposure: e.Exposure, Cap: e.Cap, Form: formNone, Created: e.Created, Updated: millis(k.now()), Label: e.Label}
			if err := c.putEntry(w, keys[i], gone); err != nil {
				return err
			}
		}
		c.n = len(labels)
		return nil
	})
	w.wipe()
	if err != nil {
		return nil, err
	}
	return out, nil
}

package seal_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

// The inputs of the known answers, docs/SPEC.md section 12: consecutive bytes.
const (
	agentText    = "slk1_028pjNsepcEVmdQBL69VLpUiZ53oDH4mEVFvp7u7ED6UzpF5eHPrBI5AHumY7UBpOQIJz1eBDwh"
	recoveryText = "slr1_028pr4yEZBaIRMlly7Pczoubwg3oDH4mEVFvp7u7ED6UzpF5eHPrBI5AHumY7UBpOQIJz2UCszB"
	label        = "stripe/prod"
)

func run(from byte) (b [32]byte) {
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func run16(from byte) (b [16]byte) {
	long := run(from)
	return [16]byte(long[:16])
}

// kit is one store with one identity, made of the inputs of the known answers.
type kit struct {
	root       seal.Root
	store      *seal.Store
	id         identity.ID
	z          [32]byte
	ok         [32]byte
	key        identity.Key
	recovery   identity.Key
	recoveryPK []byte
	inner      *seal.Inner
	pk         []byte
	header     *seal.Header
	outer      *seal.Outer
	bind       seal.Bind
	tag        [16]byte
}

func rootText(epochs ...uint32) string {
	pub := [19]byte{1}
	id := run16(0x40)
	copy(pub[3:], id[:])
	text := "# root text\n0 " + identity.EncodeText("slroot1_", pub, run(0xb0)) + "\n"
	for _, e := range epochs {
		text += fmt.Sprintf("%d %s\n", e, identity.EncodeText("slroot1_", pub, run(0x50+byte(e-1))))
	}
	return text
}

func newKit(t testing.TB) *kit {
	t.Helper()
	k := &kit{id: run16(0), z: run(0x70), ok: run(0xd0)}
	var err error
	if k.root, err = seal.ParseRoot(rootText(1)); err != nil {
		t.Fatal(err)
	}
	if k.key, err = identity.ParseKey(agentText); err != nil {
		t.Fatal(err)
	}
	if k.recovery, err = identity.ParseKey(recoveryText); err != nil {
		t.Fatal(err)
	}
	k.store = k.root.Store()
	k.recoveryPK = seal.RecoveryPublicKey(k.recovery.RecoverySeed(k.store.ID()))
	k.inner = seal.InnerOf(k.store.ID(), k.id, run(0x90))
	k.pk = k.inner.PublicKey()
	k.tag = k.store.Tag(k.id, label)
	k.bind = seal.Bind{Store: k.store.ID(), ID: k.id, Version: 1, Kind: 1, Exposure: 1, Label: label}
	k.header = &seal.Header{
		Gen: 7, Seals: 12, State: seal.StateActive, Created: 1_795_442_732_000, Changed: 1_795_442_733_000,
		LastOp: 3, LastSlot: k.key.Slot(), OK: k.ok, Count: 1, PK: k.pk, Name: "billing-bot",
		Slots: []seal.Slot{{
			ID: k.key.Slot(), AuthHash: seal.AuthHash(k.key.Auth()), State: seal.SlotLive, Kind: 1, Scopes: 0b1111,
			Created: 1_795_442_732_000, Name: "laptop", Globs: []string{"stripe/*", "github/*"}, Wrapped: must(k.inner.Wrap(k.key)),
		}},
		Recovery: must(k.inner.WrapRecovery(k.recoveryPK, k.store.Fingerprint(k.recoveryPK))),
	}
	k.outer = k.store.Outer(k.id, k.header)
	return k
}

func (k *kit) record(inner []byte, form uint8) *seal.Entry {
	return &seal.Entry{
		Version: 1, Last: 1, Kind: 1, Exposure: 1, Cap: 2, Form: form, Created: 1_795_442_732_000, Updated: 1_795_442_732_000,
		Label: label, Hosts: []string{"api.stripe.com"}, Fields: []string{"value"}, Tags: []string{"prod"},
		Extra: []byte(`{"place":"header:Authorization: Bearer"}`), Inner: inner,
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var value = []seal.Field{{Name: "value", Value: []byte("hunter2")}}

package vault_test

import (
	"fmt"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

func benchVault(b *testing.B, labels int) (*house, *vault.Vault) {
	h := newHouse(b)
	key := h.create(b, "ci", identity.Grant{})
	var es []vault.NewEntry
	for i := range labels {
		es = append(es, secret(fmt.Sprintf("label-%04d", i), "sk-proj-0123456789abcdefghijklmnopqrstuv"))
	}
	if _, err := h.Import(b.Context(), key.Identity(), es, true); err != nil {
		b.Fatal(err)
	}
	v := unlock(b, h.Keeper, key)
	for _, e := range es {
		get(b, v, string(e.Label))
	}
	return h, v
}

// BenchmarkGet is one whole cold read through the gate: load, judge, line,
// release, on an engine in memory, so without the audit sync.
func BenchmarkGet(b *testing.B) {
	h, v := benchVault(b, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Get(b.Context(), "label-0100", ""); err != nil {
			b.Fatal(err)
		}
		h.mem.lines = h.mem.lines[:1]
	}
}

// BenchmarkCall is what a call over MCP asks of the vault: the key proved, then
// one read.
func BenchmarkCall(b *testing.B) {
	h := newHouse(b)
	key := h.create(b, "ci", identity.Grant{})
	h.put(b, key.Identity(), secret("label", "sk-proj-0123456789abcdefghijklmnopqrstuv"))
	get(b, unlock(b, h.Keeper, key), "label") // the value leaves the mailbox
	b.ReportAllocs()
	for b.Loop() {
		get(b, unlock(b, h.Keeper, key), "label")
		h.mem.lines = h.mem.lines[:1]
	}
}

// BenchmarkUnlock is the reading of the identity that precedes each call.
func BenchmarkUnlock(b *testing.B) {
	h := newHouse(b)
	key := h.create(b, "ci", identity.Grant{})
	b.ReportAllocs()
	for b.Loop() {
		unlock(b, h.Keeper, key)
	}
}

func BenchmarkPut(b *testing.B) {
	h := newHouse(b)
	key := h.create(b, "ci", identity.Grant{})
	b.ReportAllocs()
	for b.Loop() {
		h.put(b, key.Identity(), secret("label", "sk-proj-0123456789abcdefghijklmnopqrstuv"))
		h.mem.lines = h.mem.lines[:1]
	}
}

func BenchmarkLabels200(b *testing.B) {
	h, v := benchVault(b, 200)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Labels(b.Context(), ""); err != nil {
			b.Fatal(err)
		}
		h.mem.lines = h.mem.lines[:1]
	}
}

package vault_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// onDisk is a store on the real engine.
func onDisk(t testing.TB, dir string) (*vault.Keeper, vault.Root) {
	t.Helper()
	root := vault.NewRoot()
	b, err := bolt.Create(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Init(t.Context(), b, root, vault.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	k := vault.Open(b, sourceOf(root), vault.Options{})
	t.Cleanup(func() { k.Close() })
	return k, root
}

func sourceOf(root vault.Root) vault.RootSource {
	return func(context.Context, identity.ID) (vault.Root, error) { return root, nil }
}

func reopen(t testing.TB, dir string, root vault.Root) *vault.Keeper {
	t.Helper()
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := vault.Open(b, sourceOf(root), vault.Options{})
	t.Cleanup(func() { k.Close() })
	return k
}

func TestWholeLifeOnTheRealEngine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	k, root := onDisk(t, dir)
	key, err := k.Create(t.Context(), vault.NewIdentity{Name: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	id := key.Identity()
	if _, err := k.Import(t.Context(), id, []vault.NewEntry{secret("a", "CANARY-value"), secret("b", "2")}, false); err != nil {
		t.Fatal(err)
	}
	agent := reopen(t, dir, root)
	v := unlock(t, agent, key)
	if got := get(t, v, "a"); got != "CANARY-value" {
		t.Errorf("Get = %q", got)
	}
	old, err := os.ReadFile(filepath.Join(dir, "vault.db"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.Revoke(t.Context(), id, vault.Revocation{Shred: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Revealed) != 1 || r.Revealed[0].Label != "a" {
		t.Errorf("receipt = %+v, want a revealed", r)
	}
	_, err = v.Get(t.Context(), "a", "")
	wantWord(t, "the next call of another process", err, vault.Revoked)
	rep, err := agent.VerifyAudit(t.Context())
	if err != nil || !rep.OK() {
		t.Errorf("VerifyAudit = %v, %v", rep.Problems, err)
	}
	agent.Close()
	k.Close()

	if err := os.WriteFile(filepath.Join(dir, "vault.db"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen(t, dir, root).Unlock(t.Context(), key, stdio); err == nil {
		t.Error("an old database beside the erased cell opens")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "CANARY") || strings.Contains(string(b), key.Reveal()) {
			t.Errorf("%s holds a value or a key in clear", e.Name())
		}
	}
}

// BenchmarkGetDurable is BenchmarkGet with the real engine: it waits for one
// audit sync per call.
func BenchmarkGetDurable(b *testing.B) {
	k, _ := onDisk(b, filepath.Join(b.TempDir(), "data"))
	key, err := k.Create(b.Context(), vault.NewIdentity{Name: "ci"})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := k.Put(b.Context(), key.Identity(), secret("a", "sk-proj-0123456789abcdefghijklmnopqrstuv")); err != nil {
		b.Fatal(err)
	}
	v := unlock(b, k, key)
	get(b, v, "a")
	b.ReportAllocs()
	for b.Loop() {
		get(b, v, "a")
	}
}

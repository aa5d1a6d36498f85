package seal_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/seal"
)

func TestBackupKeysOpenWithTheRecoveryKeyOnly(t *testing.T) {
	store := identity.NewID()
	newKey := func() (k identity.Key, pk []byte) {
		k = identity.NewRecoveryKey(store, func(seed [32]byte) identity.ID {
			pk = seal.RecoveryPublicKey(seed)
			return identity.NewID()
		})
		return k, pk
	}
	key, pk := newKey()
	other, _ := newKey()
	before := [32]byte{1}
	sealed, err := seal.SealBackup(pk, store, before, []byte("keys"))
	if err != nil {
		t.Fatal(err)
	}
	if pt, err := seal.OpenBackup(key, store, before, sealed); err != nil || string(pt) != "keys" {
		t.Errorf("control: OpenBackup = %q, %v", pt, err)
	}
	agent := identity.NewKey(identity.Agent, identity.NewID())
	for name, open := range map[string]func() ([]byte, error){
		"another recovery key": func() ([]byte, error) { return seal.OpenBackup(other, store, before, sealed) },
		"an agent's key":       func() ([]byte, error) { return seal.OpenBackup(agent, store, before, sealed) },
		"another store":        func() ([]byte, error) { return seal.OpenBackup(key, identity.NewID(), before, sealed) },
		"another place":        func() ([]byte, error) { return seal.OpenBackup(key, store, [32]byte{2}, sealed) },
		"a cut end":            func() ([]byte, error) { return seal.OpenBackup(key, store, before, sealed[:len(sealed)-1]) },
	} {
		if pt, err := open(); !errors.Is(err, seal.ErrRefused) || pt != nil {
			t.Errorf("%s: OpenBackup = %q, %v", name, pt, err)
		}
	}
}

func TestSignedKnowsTheStore(t *testing.T) {
	st, other := seal.NewRoot().Store(), seal.NewRoot().Store()
	msg := []byte("message")
	if !seal.Signed(st.AuditPublic(), msg, st.Sign(msg)) {
		t.Error("control: a signature is refused")
	}
	if seal.Signed(other.AuditPublic(), msg, st.Sign(msg)) || seal.Signed(st.AuditPublic(), msg[1:], st.Sign(msg)) || seal.Signed(nil, msg, st.Sign(msg)) || seal.Signed(st.AuditPublic(), msg, nil) {
		t.Error("a signature of another store, message or length is taken")
	}
	if seal.FingerprintOf(st.ID(), st.AuditPublic(), [32]byte{}) != st.Fingerprint(nil) {
		t.Error("FingerprintOf and Fingerprint differ")
	}
}

func TestRootsOfOneStoreJoin(t *testing.T) {
	root := seal.NewRoot()
	audit, one, _ := strings.Cut(root.Reveal(), "\n")
	// A later epoch is the secret of the first under another number; it is no
	// store's, but it has a store's form.
	two := audit + "\n2 " + strings.TrimPrefix(one, "1 ")
	later, err := seal.ParseRoot(two)
	if err != nil {
		t.Fatal(err)
	}
	both, err := root.With(later)
	if err != nil || !both.Has(1) || !both.Has(2) || both.Epoch() != 2 {
		t.Errorf("With = epochs 1 %v, 2 %v, %v", both.Has(1), both.Has(2), err)
	}
	if same, err := root.With(root); err != nil || same.Reveal() != root.Reveal() {
		t.Errorf("With itself = %v", err)
	}
	if root.Has(2) || later.Has(1) {
		t.Error("With changed its arguments")
	}
	clash, err := seal.ParseRoot(audit + "\n1 " + strings.TrimPrefix(audit, "0 "))
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]seal.Root{"another secret": clash, "another store": seal.NewRoot(), "the zero root": {}} {
		if got, err := root.With(o); !errors.Is(err, seal.ErrRefused) || got.Epoch() != 0 {
			t.Errorf("With %s = %v", name, fmt.Sprint(err))
		}
	}
}

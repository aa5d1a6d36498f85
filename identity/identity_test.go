package identity_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
)

func TestIDsComeBackFromText(t *testing.T) {
	a, b := identity.NewID(), identity.NewID()
	if a == b || a.IsZero() {
		t.Errorf("NewID() = %v, then %v", a, b)
	}
	if got, err := identity.ParseID(a.String()); err != nil || got != a {
		t.Errorf("ParseID(%q) = %v, %v", a, got, err)
	}
	if !(identity.ID{}).IsZero() {
		t.Error("the zero ID is not zero")
	}
	for _, s := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("g", 32), " " + a.String()[1:]} {
		if id, err := identity.ParseID(s); !errors.Is(err, identity.ErrMalformedID) || !id.IsZero() {
			t.Errorf("ParseID(%q) = %v, %v, want ErrMalformedID", s, id, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, s := range []string{"a", "0", "claude-code", "a-", strings.Repeat("a", 63)} {
		if err := identity.CheckName(s); err != nil {
			t.Errorf("CheckName(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"", "-a", "A", "a b", "a_b", "a.b", "a/b", "\u00e9", "a\n", strings.Repeat("a", 64)} {
		if err := identity.CheckName(s); !errors.Is(err, identity.ErrMalformedName) {
			t.Errorf("CheckName(%q) = %v, want ErrMalformedName", s, err)
		}
	}
}

func TestWordsForStates(t *testing.T) {
	for want, got := range map[string]string{
		"active": identity.Active.String(), "revoked": identity.Revoked.String(), "shredded": identity.Shredded.String(),
		"status(0)": identity.Status(0).String(),
		"agent":     identity.Agent.String(), "recovery": identity.Recovery.String(), "kind(9)": identity.Kind(9).String(),
	} {
		if got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
}

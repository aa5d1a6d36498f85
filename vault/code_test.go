package vault_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

func totpHouse(t *testing.T, uri string) (*house, identity.Key) {
	h := newHouse(t)
	h.Keeper = vault.Open(h.mem, h.rootSource, vault.Options{})
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), vault.NewEntry{Label: "otp", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte(uri)}}})
	return h, key
}

func TestCodeIsGivenOutOncePerStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, key := totpHouse(t, "JBSWY3DPEHPK3PXP")
		v := unlock(t, h.Keeper, key)
		first, err := v.Code(t.Context(), "otp", 0)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		second, err := unlock(t, vault.Open(h.mem, h.rootSource, vault.Options{}), key).Code(t.Context(), "otp", 0)
		if err != nil {
			t.Fatal(err)
		}
		if !second.From.Equal(first.Until) || first.Digits == second.Digits {
			t.Errorf("second code from %v, want the step after %v", second.From, first.From)
		}
		if waited := time.Since(start); waited != first.Until.Sub(start) {
			t.Errorf("waited %v, want until the next step", waited)
		}
	})
}

func TestNearlySpentWindowWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, key := totpHouse(t, "JBSWY3DPEHPK3PXP")
		time.Sleep(25 * time.Second) // synctest: no real time passes
		code, err := unlock(t, h.Keeper, key).Code(t.Context(), "otp", 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(code.Until); left < 10*time.Second {
			t.Errorf("%v left, want at least 10 s", left)
		}
	})
}

func TestLongWaitIsRefusedWithTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, key := totpHouse(t, "otpauth://totp/x?secret=JBSWY3DPEHPK3PXP&period=300")
		v := unlock(t, h.Keeper, key)
		if _, err := v.Code(t.Context(), "otp", 0); err != nil {
			t.Fatal(err)
		}
		_, err := v.Code(t.Context(), "otp", 0)
		wantWord(t, "a second code", err, vault.RateLimited)
		if r := vault.Refuse(err); r.RetryAfter <= 0 || r.RetryAfter > 300*time.Second {
			t.Errorf("retry after %v", r.RetryAfter)
		}
		_, err = v.Code(t.Context(), "otp", 300*time.Second)
		wantWord(t, "min_remaining of a whole period", err, vault.BadRequest)
	})
}

func TestKeyRevokedDuringTheWaitGetsNoCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, key := totpHouse(t, "JBSWY3DPEHPK3PXP")
		v := unlock(t, h.Keeper, key)
		if _, err := v.Code(t.Context(), "otp", 0); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(5 * time.Second)
			if _, err := h.Revoke(t.Context(), key.Identity(), vault.Revocation{}); err != nil {
				t.Error(err)
			}
		}()
		code, err := v.Code(t.Context(), "otp", 0)
		wantWord(t, "Code", err, vault.Revoked)
		if code.Digits != "" {
			t.Error("a code left")
		}
	})
}

func TestSeedNeverLeavesThroughGet(t *testing.T) {
	h, key := totpHouse(t, "JBSWY3DPEHPK3PXP")
	v := unlock(t, h.Keeper, key)
	for _, field := range []string{"", "value", "seed", "secret", "otp"} {
		s, err := v.Get(t.Context(), "otp", field)
		wantWord(t, "Get of a seed", err, vault.Forbidden)
		if s.Reveal() != "" || strings.Contains(err.Error(), "JBSW") {
			t.Error("the seed left")
		}
	}
}

func TestFieldOfClassNeverIsNeitherReturnedNorNamed(t *testing.T) {
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), vault.NewEntry{Label: "github", Kind: vault.KindLogin, Fields: []vault.Field{
		{Name: "value", Value: []byte("pw")}, {Name: "username", Value: []byte("ana")}, {Name: "backup_codes", Value: []byte("CANARY"), Never: true},
	}})
	v := unlock(t, h.Keeper, key)
	s, err := v.Get(t.Context(), "github", "username")
	if err != nil || s.Reveal() != "ana" || strings.Join(s.Fields, " ") != "username value" {
		t.Errorf("Get = %v, fields %v", err, s.Fields)
	}
	_, err = v.Get(t.Context(), "github", "backup_codes")
	wantWord(t, "Get of a never field", err, vault.NotFound)
	infos, _ := v.Labels(t.Context(), "")
	if strings.Contains(strings.Join(infos[0].Fields, " "), "backup") {
		t.Errorf("Labels names %v", infos[0].Fields)
	}
}

// The seed of a label is stored again with a longer period, in the same
// minute.
func TestNewPeriodStillGivesCodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, key := totpHouse(t, "JBSWY3DPEHPK3PXP")
		v := unlock(t, h.Keeper, key)
		time.Sleep(31 * time.Second)
		if _, err := v.Code(t.Context(), "otp", 0); err != nil {
			t.Fatal(err)
		}
		h.put(t, key.Identity(), vault.NewEntry{Label: "otp", Kind: vault.KindTOTP, Fields: []vault.Field{{Name: "value", Value: []byte("otpauth://totp/x?secret=JBSWY3DPEHPK3PXP&period=60")}}})
		code, err := v.Code(t.Context(), "otp", 0)
		if err != nil || code.Period != time.Minute {
			t.Errorf("Code = %v, %v", code.Period, err)
		}
	})
}

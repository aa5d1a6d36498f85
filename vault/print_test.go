package vault_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// formats prints v in every way that a careless line might, as itself and in
// an unexported field of something else.
func formats(v any, hidden any) string {
	var b bytes.Buffer
	for _, verb := range strings.Fields("%v %+v %#v %s %q %x %X %d %t %e %c %U") {
		fmt.Fprintf(&b, verb+"\n"+verb+"\n", v, hidden)
	}
	_ = json.NewEncoder(&b).Encode(v)
	_ = json.NewEncoder(&b).Encode(hidden)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "v", v, "h", hidden)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "v", v, "h", hidden)
	return b.String()
}

func holds(printed, secret string) bool {
	low := strings.ToLower(printed)
	decimal := strings.Trim(fmt.Sprint([]byte(secret)), "[]")
	for _, form := range []string{secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)), decimal} {
		if strings.Contains(low, strings.ToLower(form)) {
			return true
		}
	}
	return false
}

func TestSecretsCannotBePrinted(t *testing.T) {
	const canary = "CANARY-7f3a91c2"
	h := newHouse(t)
	key := h.create(t, "ci", identity.Grant{})
	h.put(t, key.Identity(), secret("a", canary))
	s, err := unlock(t, h.Keeper, key).Get(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	if holds(formats(s, struct{ s vault.Secret }{s}), canary) {
		t.Error("a Secret prints its value")
	}
	if f := (vault.Field{Name: "value", Value: []byte(canary)}); holds(formats(f, f), canary) {
		t.Error("a Field prints its value")
	}
	text := h.root.Reveal()
	printed := formats(h.root, struct{ r vault.Root }{h.root})
	for _, line := range strings.Fields(text) {
		if len(line) > 20 && holds(printed, line) {
			t.Error("a Root prints its text")
		}
	}
	if !holds(formats(canary, struct{ s string }{canary}), canary) {
		t.Error("control: a plain string is not found, so the test sees nothing")
	}
}

package identity_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
)

// printed returns everything that the printers of the standard library make
// of v.
func printed(t *testing.T, v any) string {
	t.Helper()
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%e", "%t"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	fmt.Fprintln(&out, v)
	if b, err := json.Marshal(v); err == nil {
		out.Write(b)
	}
	for _, h := range []slog.Handler{
		slog.NewTextHandler(&out, nil),
		slog.NewJSONHandler(&out, nil),
	} {
		slog.New(h).Info("x", slog.Any("k", v), slog.Group("g", slog.Any("k", v)))
	}
	fmt.Fprintln(&out, fmt.Errorf("wrapping: %v", v), errors.Join(fmt.Errorf("%+v", v)))
	return out.String()
}

// forms returns how the bytes b may show.
func forms(b []byte) []string {
	dec := strings.Trim(fmt.Sprint(b[:8]), "[]")
	gosyntax := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", b[:8]), "[]byte{"), "}")
	return []string{
		string(b), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)),
		base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b),
		dec, strings.ReplaceAll(dec, " ", ","), gosyntax,
		fmt.Sprintf("%o", b[:8]), fmt.Sprintf("%b", b[:8]), fmt.Sprintf("%U", b[:8]),
	}
}

func leaks(out string, secrets ...[]byte) string {
	for _, s := range secrets {
		for _, form := range forms(s) {
			if strings.Contains(out, strings.Trim(form, "[]")) {
				return form
			}
		}
	}
	return ""
}

type bareKey struct{ Secret [32]byte }

func TestKeysAreNeverPrinted(t *testing.T) {
	k := mustParse(t, agentText)
	auth, lock, secret := k.Auth(), k.InnerLock(), run(0x10)
	secrets := [][]byte{auth[:], lock[:], secret[:], []byte(agentText), []byte(agentText[31:])}
	for name, v := range map[string]any{
		"key":              k,
		"pointer":          &k,
		"field":            struct{ K identity.Key }{k},
		"unexported field": struct{ k identity.Key }{k},
		"slice":            []identity.Key{k},
		"map":              map[string]identity.Key{"k": k},
		"any":              []any{k, &k},
	} {
		out := printed(t, v)
		if form := leaks(out, secrets...); form != "" {
			t.Errorf("%s: printing shows %q", name, form)
		}
		if name == "key" && strings.Count(out, "[redacted]") < 20 {
			t.Errorf("%s: printed without [redacted]:\n%s", name, out)
		}
	}
	if text, err := k.MarshalText(); err != nil || string(text) != "[redacted]" {
		t.Errorf("MarshalText() = %q, %v", text, err)
	}
	if b, err := json.Marshal(k); err != nil || string(b) != `"[redacted]"` {
		t.Errorf("json.Marshal = %s, %v", b, err)
	}

	// Control: a type without redaction is caught.
	if leaks(printed(t, bareKey{secret}), secrets...) == "" {
		t.Error("control: printed bytes were not found")
	}
	if leaks(printed(t, struct{ s string }{agentText}), secrets...) == "" {
		t.Error("control: printed text was not found")
	}
}

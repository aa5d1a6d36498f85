package totp_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/solekey/solekey/totp"
)

// A secret in the shape that most sites show, 20 bytes.
const secret32 = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"

func mustParse(t testing.TB, text string) totp.Seed {
	t.Helper()
	s, err := totp.Parse(text)
	if err != nil {
		t.Fatalf("Parse of a good seed: %v", err)
	}
	return s
}

func mustCode(t testing.TB, s totp.Seed, at int64) totp.Code {
	t.Helper()
	c, err := s.Code(time.Unix(at, 0))
	if err != nil {
		t.Fatalf("Code(%d): %v", at, err)
	}
	return c
}

// TestRFC6238Vectors is appendix B of RFC 6238 with the seed lengths of its
// erratum 2866. Codes of 6 and 7 digits are the ends of those of 8.
func TestRFC6238Vectors(t *testing.T) {
	seeds := map[string][]byte{
		"SHA1":   []byte("12345678901234567890"),
		"SHA256": []byte("12345678901234567890123456789012"),
		"SHA512": []byte("1234567890123456789012345678901234567890123456789012345678901234"),
	}
	for _, v := range []struct {
		at        int64
		algorithm string
		want      string
	}{
		{59, "SHA1", "94287082"}, {59, "SHA256", "46119246"}, {59, "SHA512", "90693936"},
		{1111111109, "SHA1", "07081804"}, {1111111109, "SHA256", "68084774"}, {1111111109, "SHA512", "25091201"},
		{1111111111, "SHA1", "14050471"}, {1111111111, "SHA256", "67062674"}, {1111111111, "SHA512", "99943326"},
		{1234567890, "SHA1", "89005924"}, {1234567890, "SHA256", "91819424"}, {1234567890, "SHA512", "93441116"},
		{2000000000, "SHA1", "69279037"}, {2000000000, "SHA256", "90698825"}, {2000000000, "SHA512", "38618901"},
		{20000000000, "SHA1", "65353130"}, {20000000000, "SHA256", "77737706"}, {20000000000, "SHA512", "47863826"},
	} {
		for digits := 6; digits <= 8; digits++ {
			s := mustParse(t, fmt.Sprintf("otpauth://totp/rfc?secret=%s&algorithm=%s&digits=%d",
				base32.StdEncoding.EncodeToString(seeds[v.algorithm]), v.algorithm, digits))
			got := mustCode(t, s, v.at)
			if want := v.want[8-digits:]; got.Digits != want {
				t.Errorf("%s, %d digits at %d: code = %s, want %s", v.algorithm, digits, v.at, got.Digits, want)
			}
			if s.Algorithm() != v.algorithm || s.Digits() != digits || s.Period() != 30*time.Second {
				t.Errorf("parameters = %s, %d, %v", s.Algorithm(), s.Digits(), s.Period())
			}
		}
	}
}

// truncated is the number of RFC 4226 section 5.3, computed here so that the
// library is not its own witness.
func truncated(h func() hash.Hash, secret []byte, step int64) uint32 {
	mac := hmac.New(h, secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(step)))
	sum := mac.Sum(nil)
	return binary.BigEndian.Uint32(sum[sum[len(sum)-1]&15:]) & 0x7fffffff
}

func steamCode(secret []byte, step int64) string {
	const letters = "23456789BCDFGHJKMNPQRTVWXY"
	n := truncated(sha1.New, secret, step)
	var out []byte
	for range 5 {
		out = append(out, letters[n%26])
		n /= 26
	}
	return string(out)
}

func TestSteamCodesAgree(t *testing.T) {
	for i := range 100 {
		raw := sha1.Sum(fmt.Append(nil, "steam", i))
		text := base32.StdEncoding.EncodeToString(raw[:])
		for _, uri := range []string{
			"steam://" + text,
			"STEAM://" + strings.ToLower(text),
			"otpauth://steam/Steam:gabe?secret=" + text + "&issuer=Steam",
			"otpauth://totp/Steam:gabe?secret=" + text + "&encoder=steam",
			"otpauth://totp/Steam:gabe?secret=" + text + "&encoder=Steam&digits=5&period=30&algorithm=SHA1",
		} {
			s := mustParse(t, uri)
			at := int64(1700000000 + 977*i)
			if got, want := mustCode(t, s, at).Digits, steamCode(raw[:], at/30); got != want || s.Digits() != 5 {
				t.Fatalf("code = %s of %d characters, want %s", got, s.Digits(), want)
			}
		}
	}
}

// TestCodesAgree compares with the test's own derivation over all parameters.
func TestCodesAgree(t *testing.T) {
	hashes := map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}
	i := 0
	for algorithm, h := range hashes {
		for _, digits := range []int{6, 7, 8} {
			for _, period := range []int64{10, 30, 37, 60, 300} {
				for length := 10; length < 74; length += 7 {
					i++
					raw := bytes.Repeat(fmt.Append(nil, i, algorithm), 20)[:length]
					at := int64(i) * 104729
					s := mustParse(t, fmt.Sprintf("otpauth://totp/?secret=%s&algorithm=%s&digits=%d&period=%d",
						strings.TrimRight(base32.StdEncoding.EncodeToString(raw), "="), algorithm, digits, period))
					want := fmt.Sprintf("%010d", truncated(h, raw, at/period))[10-digits:]
					if got := mustCode(t, s, at).Digits; got != want {
						t.Fatalf("%s, %d digits, %d s, %d bytes: code = %s, want %s", algorithm, digits, period, length, got, want)
					}
				}
			}
		}
	}
}

func TestCodeWindow(t *testing.T) {
	for _, period := range []int64{10, 30, 60, 299, 300} {
		s := mustParse(t, fmt.Sprintf("otpauth://totp/?secret=%s&period=%d", secret32, period))
		length := time.Duration(period) * time.Second
		for _, step := range []int64{0, 1, 57777777} {
			from := time.Unix(step*period, 0).UTC()
			first, err := s.Code(from)
			if err != nil {
				t.Fatal(err)
			}
			want := totp.Code{Digits: first.Digits, From: from, Until: from.Add(length), Period: length}
			for _, at := range []time.Time{from, from.Add(1), from.Add(length / 2), from.Add(length - 1), from.In(time.FixedZone("", 7200))} {
				got, err := s.Code(at)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("Code(%v) of period %v (-want +got):\n%s", at, length, diff)
				}
				if at.Before(got.From) || !at.Before(got.Until) {
					t.Errorf("Code(%v) holds from %v until %v", at, got.From, got.Until)
				}
			}
			next, err := s.Code(from.Add(length))
			if err != nil || !next.From.Equal(want.Until) {
				t.Errorf("the step after %v begins at %v, %v", want.Until, next.From, err)
			}
		}
	}
}

func TestCodeRefusesTimesOutsideTheCalendar(t *testing.T) {
	s := mustParse(t, secret32)
	for _, at := range []time.Time{{}, time.Unix(-1, 0), time.Unix(0, -1), time.Unix(253402300800, 0), time.Unix(1<<63-1, 0)} {
		if c, err := s.Code(at); err == nil {
			t.Errorf("Code(%d) = %v, want an error", at.Unix(), c)
		}
	}
	for _, at := range []int64{0, 253402300799} {
		mustCode(t, s, at)
	}
}

func TestWipeEndsAllCopies(t *testing.T) {
	s := mustParse(t, secret32)
	other := s
	mustCode(t, other, 0) // control: it works before
	s.Wipe()
	s.Wipe()
	for name, seed := range map[string]totp.Seed{"seed": s, "copy": other, "zero": {}} {
		if c, err := seed.Code(time.Unix(0, 0)); err == nil {
			t.Errorf("wiped %s gives %v", name, c)
		}
	}
	totp.Seed{}.Wipe()
}

// encodings returns the forms in which secret bytes may leave.
func encodings(raw []byte) []string {
	b32 := strings.TrimRight(base32.StdEncoding.EncodeToString(raw), "=")
	hx := hex.EncodeToString(raw)
	list := strings.Trim(fmt.Sprint(raw[:8]), "[]")
	gosyntax := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", raw[:8]), "[]byte{"), "}")
	return []string{
		string(raw), b32, strings.ToLower(b32), hx, strings.ToUpper(hx),
		base64.RawStdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw),
		list, strings.ReplaceAll(list, " ", ","), gosyntax,
		strings.Trim(fmt.Sprintf("%o", raw[:8]), "[]"), strings.Trim(fmt.Sprintf("%b", raw[:8]), "[]"),
		strings.Trim(fmt.Sprintf("%U", raw[:8]), "[]"),
	}
}

func leaks(out string, raw []byte) string {
	for _, form := range encodings(raw) {
		if strings.Contains(out, form) {
			return form
		}
	}
	return ""
}

func rawOf(t *testing.T) []byte {
	t.Helper()
	raw, err := base32.StdEncoding.DecodeString(secret32)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// printed returns everything that the printers of the standard library make
// of v.
func printed(v any) string {
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U", "%e", "%t"} {
		fmt.Fprintf(&out, verb+"\n", v)
	}
	if b, err := json.Marshal(v); err == nil {
		out.Write(b)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", slog.Any("k", v))
	}
	return out.String()
}

func TestSeedsAreNeverPrinted(t *testing.T) {
	s, raw := mustParse(t, secret32), rawOf(t)
	for name, v := range map[string]any{
		"seed":             s,
		"pointer":          &s,
		"field":            struct{ S totp.Seed }{s},
		"unexported field": struct{ s totp.Seed }{s},
		"slice":            []totp.Seed{s},
		"map":              map[string]totp.Seed{"s": s},
	} {
		out := printed(v)
		if form := leaks(out, raw); form != "" {
			t.Errorf("%s: printing shows %q", name, form)
		}
		if name == "seed" && strings.Count(out, "[redacted]") != 17 {
			t.Errorf("%s: printed without [redacted]:\n%s", name, out)
		}
	}
	// Control: bytes without redaction are found, also behind a pointer.
	type bare struct{ secret []byte }
	for name, v := range map[string]any{"value": bare{raw}, "pointer": struct{ p *bare }{&bare{raw}}} {
		if leaks(printed(v), raw) == "" {
			t.Errorf("control: a printed %s was not found", name)
		}
	}
}

// fakeState is a fmt.State with every flag set.
type fakeState struct{ bytes.Buffer }

func (*fakeState) Width() (int, bool)     { return 80, true }
func (*fakeState) Precision() (int, bool) { return 80, true }
func (*fakeState) Flag(int) bool          { return true }

// everythingFrom calls every exported method of v and returns all they give,
// with Wipe last.
func everythingFrom(t *testing.T, v any) string {
	t.Helper()
	var out bytes.Buffer
	value := reflect.ValueOf(v)
	for i := range value.NumMethod() {
		if value.Type().Method(i).Name == "Wipe" {
			continue
		}
		state := &fakeState{}
		method := value.Method(i)
		var args []reflect.Value
		for in := range method.Type().Ins() {
			args = append(args, argument(t, in, state))
		}
		for _, result := range method.Call(args) {
			out.WriteString(printed(result.Interface()))
			if b, ok := result.Interface().([]byte); ok {
				out.Write(b)
			}
		}
		out.Write(state.Bytes())
	}
	if m := value.MethodByName("Wipe"); m.IsValid() {
		m.Call(nil)
	}
	return out.String()
}

// argument makes up an argument. A method that takes something else needs a
// line here, and with it a thought.
func argument(t *testing.T, in reflect.Type, state *fakeState) reflect.Value {
	t.Helper()
	switch in {
	case reflect.TypeFor[time.Time]():
		return reflect.ValueOf(time.Unix(1700000000, 0))
	case reflect.TypeFor[fmt.State]():
		return reflect.ValueOf(state)
	case reflect.TypeFor[rune]():
		return reflect.ValueOf('v')
	}
	t.Fatalf("a method takes a %v: teach this test to make one", in)
	return reflect.Value{}
}

// leakySeed is the control of TestSeedNeverLeaves, one method per form.
type leakySeed struct{ raw []byte }

func (l leakySeed) Bytes() []byte   { return l.raw }
func (l leakySeed) Wipe()           {}
func (l *leakySeed) ByPointer() any { return struct{ s []byte }{l.raw} }

func TestSeedNeverLeaves(t *testing.T) {
	raw := rawOf(t)
	for _, text := range []string{
		secret32,
		strings.ToLower(secret32),
		"steam://" + secret32,
		"otpauth://totp/Example:alice@example.com?secret=" + secret32 + "&issuer=Example&image=https%3A%2F%2Fexample.com%2F" + secret32,
	} {
		s := mustParse(t, text)
		out := everythingFrom(t, s)
		s = mustParse(t, text)
		out += everythingFrom(t, &s)
		if form := leaks(out, raw); form != "" {
			t.Errorf("a method of Seed returns %q", form)
		}
		if form := leaks(strings.ToUpper(out), []byte(secret32)); form != "" {
			t.Errorf("a method of Seed returns the text as %q", form)
		}
	}
	if n := reflect.TypeFor[totp.Seed]().NumField(); n != 2 {
		t.Errorf("Seed has %d fields, want 2", n)
	}
	for field := range reflect.TypeFor[totp.Seed]().Fields() {
		if field.IsExported() {
			t.Errorf("field %s of Seed is exported", field.Name)
		}
	}
	// Controls: a type that gives its bytes away is caught.
	if leaks(everythingFrom(t, leakySeed{raw}), raw) == "" {
		t.Error("control: a returned seed was not found")
	}
	if leaks(everythingFrom(t, &leakySeed{raw}), raw) == "" {
		t.Error("control: a seed in a returned struct was not found")
	}
}

func TestSeedIsNotComparable(t *testing.T) {
	if reflect.TypeFor[totp.Seed]().Comparable() {
		t.Error("Seed is comparable, want it not to be")
	}
}

func BenchmarkCode(b *testing.B) {
	for name, text := range map[string]string{
		"sha1":   secret32,
		"sha512": "otpauth://totp/?algorithm=SHA512&digits=8&secret=" + secret32,
		"steam":  "steam://" + secret32,
	} {
		s := mustParse(b, text)
		at := time.Unix(1700000000, 0)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Code(at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	for name, text := range map[string]string{
		"uri":  "otpauth://totp/Example:alice@example.com?secret=" + secret32 + "&issuer=Example&period=30",
		"bare": secret32,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := totp.Parse(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

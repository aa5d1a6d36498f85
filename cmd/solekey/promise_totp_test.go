package main

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"
	"testing"
	"time"
)

// otpShape is an algorithm with its sizes.
type otpShape struct {
	name   string
	hash   func() hash.Hash
	digits int
	period int64
}

func (o otpShape) uri(seed []byte) string {
	return fmt.Sprintf("otpauth://totp/Site:me?secret=%s&algorithm=%s&digits=%d&period=%d", base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(seed), o.name, o.digits, o.period)
}

// code computes RFC 6238 from its text, apart from the package that the
// program uses.
func (o otpShape) code(seed []byte, step int64) string {
	mac := hmac.New(o.hash, seed)
	_ = binary.Write(mac, binary.BigEndian, step)
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 15
	n := binary.BigEndian.Uint32(sum[at:]) & (1<<31 - 1)
	text := fmt.Sprintf("%010d", n)
	return text[len(text)-o.digits:]
}

var otpHashes = map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}

// TestOwnCodesMatchTheRFC is the control of the tests below: what they
// compare with is right for the vectors of RFC 6238, appendix B.
func TestOwnCodesMatchTheRFC(t *testing.T) {
	const seed = "1234567890"
	for _, v := range []struct {
		unix int64
		name string
		size int
		want string
	}{
		{59, "SHA1", 20, "94287082"}, {59, "SHA256", 32, "46119246"}, {59, "SHA512", 64, "90693936"},
		{1111111109, "SHA1", 20, "07081804"}, {1111111109, "SHA256", 32, "68084774"}, {1111111109, "SHA512", 64, "25091201"},
		{20000000000, "SHA1", 20, "65353130"}, {20000000000, "SHA256", 32, "77737706"}, {20000000000, "SHA512", 64, "47863826"},
	} {
		o := otpShape{v.name, otpHashes[v.name], 8, 30}
		if got := o.code([]byte(strings.Repeat(seed, 7)[:v.size]), v.unix/30); got != v.want {
			t.Errorf("%s at %d = %s, want %s", v.name, v.unix, got, v.want)
		}
	}
}

// answeredStep returns the step that an answer says it is of.
func answeredStep(t *testing.T, a answer, period int64) int64 {
	t.Helper()
	until, err := time.Parse(time.RFC3339, a.text("valid_until"))
	if err != nil || until.Unix()%period != 0 {
		t.Fatalf("get_totp_code = %v, want valid_until at the end of a step", a)
	}
	return until.Unix()/period - 1
}

// TestCodesMatchAnIndependentComputation compares the program's codes of the
// moment with those of the RFC for all algorithms and sizes.
func TestCodesMatchAnIndependentComputation(t *testing.T) {
	t.Parallel()
	r := seeded(t)
	w := newWorld(t)
	w.must("identity", "create", "bot")
	s := w.serve("--profile", "bot")
	agree, disagree := 0, 0
	for name, hash := range otpHashes {
		for digits := 6; digits <= 8; digits++ {
			for _, period := range []int64{30, 60} {
				o := otpShape{name, hash, digits, period}
				seed := []byte(draw(r, "abcdefghij0123456789\x00\x80\xff", 20+r.IntN(20)))
				label := fmt.Sprintf("otp/%s/%d/%d", name, digits, period)
				w.put("bot", label, o.uri(seed))
				before := time.Now()
				a := s.mustCall("get_totp_code", map[string]any{"label": label, "min_remaining": 0})
				after := time.Now()
				if a.refused {
					t.Fatalf("get_totp_code %s = %v", label, a)
				}
				step := answeredStep(t, a, period)
				if step < before.Unix()/period || step > after.Unix()/period {
					t.Errorf("%s: the code is of step %d at step %d", label, step, before.Unix()/period)
				}
				if got, want := a.text("code"), o.code(seed, step); got != want {
					t.Errorf("%s: code %s, want %s", label, got, want)
				}
				// Control: neither the next step nor another seed nor another
				// hash gives that code.
				for _, other := range []string{o.code(seed, step+1), o.code(seed[1:], step), otpShape{"", otpHashes[map[bool]string{true: "SHA256", false: "SHA1"}[name == "SHA1"]], digits, period}.code(seed, step)} {
					if other == a.text("code") {
						agree++
					} else {
						disagree++
					}
				}
			}
		}
	}
	if agree > 1 || disagree < 50 { // one chance hit in a million may occur
		t.Errorf("%d wrong computations agree, %d do not", agree, disagree)
	}
}

// TestOneCodePerStep lets two processes ask at once. While the step is long,
// one of them gets its code and the other the time to wait; where it is
// short, both get codes, of different steps.
func TestOneCodePerStep(t *testing.T) {
	t.Parallel() // it waits
	w := newWorld(t)
	w.must("identity", "create", "bot")
	seed := []byte("12345678901234567890")
	first, second := w.serve("--profile", "bot"), w.serve("--profile", "bot")

	long := otpShape{"SHA1", otpHashes["SHA1"], 6, 300}
	for _, period := range []int64{300, 280, 260, 240, 220} {
		if left := period - time.Now().Unix()%period; left > 60 { // no call waits for the end
			long.period = period
			break
		}
	}
	for i := range rounds(2, 5, 100) {
		label := fmt.Sprintf("long/%d", i)
		w.put("bot", label, long.uri(seed))
		a, b := bothAsk(t, first, second, label, 0)
		if a.refused {
			a, b = b, a
		}
		if a.refused || b.word != "rate_limited" || !strings.Contains(b.String(), "retry_after_ms") {
			t.Fatalf("two processes got %v and %v, want one code and one rate_limited", a, b)
		}
		if got, want := a.text("code"), long.code(seed, answeredStep(t, a, long.period)); got != want {
			t.Errorf("%s: code %s, want %s", label, got, want)
		}
		// Control: an entry of its own has a code of its own for that step.
		twin := label + "/twin"
		w.put("bot", twin, long.uri(seed))
		if c := second.mustCall("get_totp_code", map[string]any{"label": twin, "min_remaining": 0}); c.text("code") != a.text("code") {
			t.Errorf("an unspent entry with the same seed gives %v, want %s", c, a.text("code"))
		}
	}

	if testing.Short() {
		return // the rest waits up to 10 s
	}
	short := otpShape{"SHA1", otpHashes["SHA1"], 8, 10}
	w.put("bot", "short", short.uri(seed))
	a, b := bothAsk(t, first, second, "short", 0)
	if a.refused || b.refused {
		t.Fatalf("two processes got %v and %v, want two codes", a, b)
	}
	one, two := answeredStep(t, a, 10), answeredStep(t, b, 10)
	if one == two || a.text("code") != short.code(seed, one) || b.text("code") != short.code(seed, two) {
		t.Errorf("two processes got %v and %v, want the codes of two steps", a, b)
	}
}

// bothAsk asks two servers for a code at the same time.
func bothAsk(t *testing.T, first, second *server, label string, least int) (answer, answer) {
	t.Helper()
	args := map[string]any{"name": "get_totp_code", "arguments": map[string]any{"label": label, "min_remaining": least}}
	var out [2]answer
	var waits [2]func() (answer, error)
	for i, s := range []*server{first, second} {
		wait, err := s.send("tools/call", args)
		if err != nil {
			t.Fatal(err)
		}
		waits[i] = wait
	}
	for i, wait := range waits {
		var err error
		if out[i], err = wait(); err != nil {
			t.Fatal(err)
		}
	}
	return out[0], out[1]
}

// TestNearlySpentStepWaits asks for a code that holds for 9 of its 10 seconds
// in the middle of a step: the answer comes with the next one.
func TestNearlySpentStepWaits(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits up to 15 s")
	}
	t.Parallel() // it waits
	w := newWorld(t)
	w.must("identity", "create", "bot")
	seed := []byte("12345678901234567890")
	o := otpShape{"SHA256", otpHashes["SHA256"], 7, 10}
	w.put("bot", "otp", o.uri(seed))
	w.put("bot", "control", o.uri(seed))
	s := w.serve("--profile", "bot")
	for time.Now().UnixMilli()%10000 < 1500 || time.Now().UnixMilli()%10000 > 8000 {
		time.Sleep(100 * time.Millisecond) // until the middle of a step
	}
	begun := time.Now()
	// Control: without that wish the code of this step comes at once.
	now := s.mustCall("get_totp_code", map[string]any{"label": "control", "min_remaining": 0})
	if now.refused || answeredStep(t, now, 10) != begun.Unix()/10 {
		t.Errorf("get_totp_code at %v = %v, want the code of this step", begun, now)
	}
	a := s.mustCall("get_totp_code", map[string]any{"label": "otp", "min_remaining": 9})
	if a.refused {
		t.Fatalf("get_totp_code = %v", a)
	}
	step := answeredStep(t, a, 10)
	if step != begun.Unix()/10+1 || a.text("code") != o.code(seed, step) {
		t.Errorf("get_totp_code at %v = %v, want the code of the next step, %s", begun, a, o.code(seed, step))
	}
	if took := time.Since(begun); took < 1500*time.Millisecond {
		t.Errorf("the answer came after %v", took)
	}
}

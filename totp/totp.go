// Package totp turns a time-based one-time password seed and a moment into a
// code: RFC 6238 and Steam Guard.
//
// [Parse] accepts what sites and people hand out, an otpauth URI or bare
// base32, and refuses by name whatever it cannot honour exactly: a seed that
// exists gives the codes that the site expects. No exported path leads from a
// [Seed] back to its text or bytes, and no error holds a part of the text.
//
// The package keeps no clock and does no I/O. It does not guard a code
// against being handed out twice, and cannot know whether the caller's clock
// is right.
package totp

import (
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"
)

// ErrMalformedSeed reports a text that is not a seed, or one that asks for
// something this package does not do. What wraps it says which, and holds no
// part of the text.
var ErrMalformedSeed = errors.New("malformed totp seed")

var (
	errTime   = errors.New("no code for a time before 1970 or after 9999")
	errWiped  = errors.New("no code from an empty or wiped seed")
	errDerive = errors.New("deriving a code failed")
)

// lastSecond is the end of the year 9999, beyond which times have no RFC 3339
// form.
const lastSecond = 253402300799

const redacted = "[redacted]"

// Seed is one accepted seed with its parameters. It prints as [redacted] in
// every verb and encoding and is not comparable. Copies share their bytes.
// A Seed is safe for concurrent use until [Seed.Wipe] is called.
//
// The zero Seed holds nothing and gives no code.
type Seed struct {
	_ [0]func()
	// A closure, because a printer that meets a Seed in somebody's unexported
	// field cannot call its methods and walks its fields instead. Package fmt
	// follows even a pointer there, for a verb like %s; no printer looks into
	// a closure.
	open func() *material // nil in the zero Seed
}

func newSeed(m *material) Seed { return Seed{open: func() *material { return m }} }

// get returns the material, empty for the zero Seed.
func (s Seed) get() *material {
	if s.open == nil {
		return &material{}
	}
	return s.open()
}

type material struct {
	secret          []byte // nil once wiped
	issuer, account string
	algorithm       otp.Algorithm
	digits          int
	period          int64 // seconds
	steam           bool
}

// Code is one code and the step in which it holds: From <= t < Until.
type Code struct {
	Digits      string // with leading zeros; five letters and digits for Steam
	From, Until time.Time
	Period      time.Duration
}

// Code returns the code of the step that at falls into. It fails for times
// outside the years 1970 to 9999 and for a zero or wiped Seed.
func (s Seed) Code(at time.Time) (Code, error) {
	m := s.get()
	if len(m.secret) == 0 {
		return Code{}, errWiped
	}
	now := at.Unix()
	if now < 0 || now > lastSecond {
		return Code{}, errTime
	}
	step := now / m.period
	digits, err := m.at(uint64(step))
	if err != nil {
		return Code{}, err
	}
	from := time.Unix(step*m.period, 0).UTC()
	return Code{Digits: digits, From: from, Until: from.Add(s.Period()), Period: s.Period()}, nil
}

// at returns the code of one step. It calls the counter-based half of the
// library, since the time-based half divides in floating point and reads
// period 0 as 30. The library also takes zero digits for six, gives an empty
// code for an unknown encoder and six characters for Steam unless told five;
// [Parse] lets none of that reach it.
func (m *material) at(step uint64) (string, error) {
	o := hotp.ValidateOpts{Digits: otp.Digits(m.digits), Algorithm: m.algorithm}
	if m.steam {
		o.Encoder = otp.EncoderSteam
	}
	code, err := hotp.GenerateCodeCustom(base32.StdEncoding.EncodeToString(m.secret), step, o)
	if err != nil || len(code) != m.digits {
		return "", errDerive // the library's text is not ours to show
	}
	return code, nil
}

// Issuer returns who issued the seed, empty if the text named nobody. It
// never holds the seed.
func (s Seed) Issuer() string { return s.get().issuer }

// Account returns the account that the seed is for, empty if the text named
// none. It never holds the seed.
func (s Seed) Account() string { return s.get().account }

// Period returns the length of a step, 10 s to 5 min.
func (s Seed) Period() time.Duration { return time.Duration(s.get().period) * time.Second }

// Algorithm returns SHA1, SHA256 or SHA512.
func (s Seed) Algorithm() string { return s.get().algorithm.String() }

// Digits returns the length of a code: 6 to 8, or 5 for Steam.
func (s Seed) Digits() int { return s.get().digits }

// Wipe overwrites the seed's bytes, in all copies of s; later calls of
// [Seed.Code] fail. It must not run beside another call on the same seed.
func (s Seed) Wipe() {
	m := s.get()
	clear(m.secret)
	m.secret = nil
}

// String returns [redacted].
func (Seed) String() string { return redacted }

// GoString returns [redacted].
func (Seed) GoString() string { return redacted }

// Format writes [redacted] for every verb.
func (Seed) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue returns [redacted].
func (Seed) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON returns [redacted] as a JSON string.
func (Seed) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText returns [redacted].
func (Seed) MarshalText() ([]byte, error) { return []byte(redacted), nil }

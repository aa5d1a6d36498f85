package totp

import (
	"encoding/base32"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pquerna/otp"
)

// Accepted texts:
//
//	otpauth://totp/LABEL?secret=S[&issuer=I][&algorithm=A][&digits=D][&period=P][&encoder=steam]
//	otpauth://steam/LABEL?secret=S[&issuer=I]
//	steam://S
//	S
//
// S is base32 with or without blanks, dashes, padding and upper case. Scheme,
// type and parameter names are read in any case, labels and values may be
// percent-encoded. Rules of this file:
//   - What changes the codes is understood or refused, never guessed: the otp
//     library reads an unknown algorithm as SHA1 and a broken number as the
//     default.
//   - A parameter given twice is refused. Parameters that no code depends on
//     (image, color) are ignored.
//   - No error wraps one of net/url or of the library: those quote the text.
const (
	maxText   = 4096
	minSecret = 10
	minPeriod = 10
	maxPeriod = 300
)

func refuse(reason string) error { return fmt.Errorf("%w: %s", ErrMalformedSeed, reason) }

// Parse reads a seed. It reports [ErrMalformedSeed], wrapped with what is
// wrong and no part of the text.
func Parse(text string) (Seed, error) {
	text = trim(text)
	switch {
	case text == "":
		return Seed{}, refuse("it is empty")
	case len(text) > maxText:
		return Seed{}, refuse("it is longer than 4096 bytes")
	}
	scheme, rest, isURI := strings.Cut(text, "://")
	if !isURI {
		return parseBare(text, false)
	}
	switch strings.ToLower(scheme) {
	case "otpauth":
		return parseURI(rest)
	case "steam":
		return parseBare(rest, true)
	case "otpauth-migration":
		return Seed{}, refuse("an export of several accounts (otpauth-migration): export one account at a time")
	}
	return Seed{}, refuse("it is neither an otpauth URI nor base32")
}

func parseBare(text string, steam bool) (Seed, error) {
	secret, err := parseSecret(text)
	if err != nil {
		return Seed{}, err
	}
	m := material{secret: secret, digits: 6, period: 30, steam: steam}
	if steam {
		m.digits = 5
	}
	return newSeed(&m), nil
}

// parseURI reads what follows otpauth://.
func parseURI(rest string) (Seed, error) {
	if strings.ContainsFunc(rest, unicode.IsControl) {
		return Seed{}, refuse("the URI holds a line break or control character")
	}
	if strings.Contains(rest, "#") {
		return Seed{}, refuse("the URI holds a #: write it as %23")
	}
	path, query, _ := strings.Cut(rest, "?")
	kind, label, _ := strings.Cut(path, "/")
	params, err := parseQuery(query)
	if err != nil {
		return Seed{}, err
	}
	m := &material{}
	switch strings.ToLower(kind) {
	case "totp":
	case "steam":
		m.steam = true
	case "hotp":
		return Seed{}, refuse("counter-based codes (hotp) are not supported")
	default:
		return Seed{}, refuse("the type of the URI is not totp")
	}
	if err := m.setParams(params); err != nil {
		return Seed{}, err
	}
	if err := m.setNames(label, params["issuer"]); err != nil {
		clear(m.secret)
		return Seed{}, err
	}
	return newSeed(m), nil
}

// parseQuery splits and decodes a query; names come out in lower case.
func parseQuery(query string) (map[string]string, error) {
	params := map[string]string{}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(rawName)
		value, err2 := url.QueryUnescape(rawValue)
		if err1 != nil || err2 != nil {
			return nil, refuse("a parameter is not percent-encoded properly")
		}
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "amp;") {
			return nil, refuse("the URI was copied as HTML: write & for &amp;")
		}
		if _, twice := params[name]; twice {
			return nil, refuse("a parameter is given twice")
		}
		params[name] = value
	}
	return params, nil
}

// setParams takes over everything that the codes depend on.
func (m *material) setParams(params map[string]string) (err error) {
	if err := m.setEncoder(params); err != nil {
		return err
	}
	if m.algorithm, err = parseAlgorithm(params); err != nil {
		return err
	}
	if m.digits, err = m.parseDigits(params); err != nil {
		return err
	}
	if m.period, err = parsePeriod(params); err != nil {
		return err
	}
	if m.steam && (m.algorithm != otp.AlgorithmSHA1 || m.period != 30) {
		return refuse("Steam codes use SHA1 and a period of 30 seconds")
	}
	secret, ok := params["secret"]
	if !ok {
		return refuse("the URI has no secret")
	}
	m.secret, err = parseSecret(secret)
	return err
}

func (m *material) setEncoder(params map[string]string) error {
	encoder, ok := params["encoder"]
	switch {
	case !ok:
	case strings.EqualFold(encoder, "steam"):
		m.steam = true
	default:
		return refuse("unknown encoder: only steam has one")
	}
	return nil
}

func parseAlgorithm(params map[string]string) (otp.Algorithm, error) {
	text, ok := params["algorithm"]
	if !ok {
		return otp.AlgorithmSHA1, nil
	}
	name := strings.ReplaceAll(strings.ToUpper(text), "-", "")
	switch strings.TrimPrefix(name, "HMAC") {
	case "SHA1":
		return otp.AlgorithmSHA1, nil
	case "SHA256":
		return otp.AlgorithmSHA256, nil
	case "SHA512":
		return otp.AlgorithmSHA512, nil
	case "MD5":
		return 0, refuse("algorithm MD5 is not supported: choose SHA1, SHA256 or SHA512")
	}
	return 0, refuse("unknown algorithm: choose SHA1, SHA256 or SHA512")
}

func (m *material) parseDigits(params map[string]string) (int, error) {
	text, ok := params["digits"]
	switch {
	case m.steam && (!ok || text == "5"):
		return 5, nil
	case m.steam:
		return 0, refuse("digits of a Steam code are always 5")
	case !ok:
		return 6, nil
	case len(text) == 1 && text[0] >= '6' && text[0] <= '8':
		return int(text[0] - '0'), nil
	}
	return 0, refuse("digits out of range: 6, 7 or 8")
}

func parsePeriod(params map[string]string) (int64, error) {
	text, ok := params["period"]
	if !ok {
		return 30, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n < minPeriod || n > maxPeriod {
		return 0, refuse("period out of range: 10 to 300 seconds")
	}
	return int64(n), nil
}

// setNames takes issuer and account from the label, ISSUER:ACCOUNT or
// ACCOUNT, and the issuer parameter, which counts if both name an issuer.
func (m *material) setNames(label, issuer string) error {
	label, err := url.PathUnescape(label)
	if err != nil {
		return refuse("the label is not percent-encoded properly")
	}
	before, account, two := strings.Cut(label, ":")
	if !two {
		before, account = "", label
	}
	if issuer = strings.TrimSpace(issuer); issuer == "" {
		issuer = strings.TrimSpace(before)
	}
	account = strings.TrimSpace(account)
	if !m.fitName(issuer) || !m.fitName(account) {
		return refuse("issuer or account holds the secret or a character that cannot be shown")
	}
	// Copies, as parts of the text would keep all of it in memory.
	m.issuer, m.account = strings.Clone(issuer), strings.Clone(account)
	return nil
}

// fitName reports whether a name may become metadata: text that a terminal
// shows as it is, and that does not repeat the secret.
func (m *material) fitName(s string) bool {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) }) {
		return false
	}
	return !strings.Contains(fold(s), base32Raw.EncodeToString(m.secret))
}

var base32Raw = base32.StdEncoding.WithPadding(base32.NoPadding)

// parseSecret decodes base32 in the shapes people copy it.
func parseSecret(text string) ([]byte, error) {
	chars := strings.TrimRight(fold(text), "=")
	for _, c := range []byte(chars) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return nil, refuse("the secret is not base32: only A-Z and 2-7, so no 0, 1, 8 or 9")
		}
	}
	switch len(chars) % 8 {
	case 1, 3, 6:
		return nil, refuse("the secret has an impossible length: a character is missing or too many")
	}
	secret, err := base32Raw.DecodeString(chars)
	if err != nil {
		return nil, refuse("the secret is not base32")
	}
	if len(secret) < minSecret {
		clear(secret)
		return nil, refuse("the secret is shorter than 10 bytes (16 characters)")
	}
	return secret, nil
}

// fold drops blanks and dashes and turns lower case to upper, in ASCII only:
// Unicode would turn a dotless i to I.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case isBlank(r), unicode.Is(unicode.Pd, r):
			return -1
		}
		return r
	}, s)
}

func trim(s string) string { return strings.TrimFunc(s, isBlank) }

// isBlank includes the zero-width space and the byte order mark, which come
// along when text is copied from a page.
func isBlank(r rune) bool { return unicode.IsSpace(r) || r == '\u200b' || r == '\ufeff' }

// LooksLike guesses what a text is by its shape: "totp" for an otpauth or
// Steam URI, "hotp", "migration", "base32" for a bare secret of at least 16
// characters, "" for anything else. Only [Parse] says whether it is a seed.
func LooksLike(text string) (kind string) {
	text = trim(text)
	lower := strings.ToLower(text[:min(len(text), len("otpauth-migration://"))])
	switch {
	case strings.HasPrefix(lower, "otpauth-migration://"):
		return "migration"
	case strings.HasPrefix(lower, "otpauth://hotp"):
		return "hotp"
	case strings.HasPrefix(lower, "otpauth://"), strings.HasPrefix(lower, "steam://"):
		return "totp"
	}
	if len(text) > maxText {
		return ""
	}
	secret, err := parseSecret(text)
	clear(secret)
	if err != nil {
		return ""
	}
	return "base32"
}

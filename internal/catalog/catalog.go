// Package catalog decides what a variable is from its name and value: a
// secret, a seed of one-time codes or a plain setting, whether an import takes
// it, where it may be sent and where it is rotated.
//
// It knows names and key prefixes of providers, and shapes of values. All
// functions are pure: no I/O, no network, no state. The texts in a [Hint] come
// from a fixed set; no hint holds a byte of the value it is about. The one
// thing a hint takes from another variable is the host of a tenant's endpoint.
//
// Guesses lean to the safe side: a seed must not become a readable secret, a
// key of one provider must not be bound to the host of another.
package catalog

import "strings"

// Kind is what a variable holds.
type Kind string

// The kinds. None is a variable that holds no secret.
const (
	None   Kind = "none"
	Secret Kind = "secret"
	TOTP   Kind = "totp"
)

// Action is what an import does with a variable unless it is told otherwise.
type Action string

// The actions.
const (
	Import Action = "import"
	Skip   Action = "skip"
)

// The reasons to skip a variable.
const (
	ReasonConfig      = "config"
	ReasonPublic      = "public by design"
	ReasonEmpty       = "empty"
	ReasonPlaceholder = "placeholder"
	ReasonReference   = "already a reference"
	ReasonCounter     = "counter-based codes are not supported"
	ReasonMigration   = "export one account at a time"
)

// The notes of a [Hint]. A mismatch note is followed by the provider's name
// where the value's prefix tells it.
const (
	NoteWeak      = "weak"
	NoteLive      = "live key"
	NoteBrowser   = "this name ships it to browsers"
	NoteNumber    = "a number; --only takes it"
	NoteUnlike    = "the value does not look like a key of " // provider's name
	NoteLooksLike = "the value looks like a key of "         // provider's name
	NoteNoHost    = "no host yet: needs "                    // sibling's name
)

// Hint is what is known about a variable. It can be printed: it holds nothing
// of the value.
type Hint struct {
	Kind   Kind
	Action Action
	Reason string // why it is skipped, one of the Reason constants
	// Hosts are where the value may be sent over HTTPS, as host or host:port.
	// Empty means that there is no suggestion.
	Hosts []string
	// Placement is the place in a request that goes with Hosts:
	//
	//	header:NAME           the value is the header
	//	header:NAME: SCHEME   the header is SCHEME, a blank, the value
	//	basic:VARIABLE        basic authorization; the user name is what the
	//	                      variable VARIABLE of the same file holds
	//	path:TEMPLATE         the URL's path begins with the template, in
	//	                      which {{secret}} stands for the value
	Placement string
	// RotateURL is the page where a person rotates the value.
	RotateURL string
	Notes     []string
	Warn      bool // one of the notes is a warning
}

// Guess judges one variable. The siblings are the other variables of the same
// file, or nil: a tenant's host and a user name are taken from there.
func Guess(name, value string, siblings map[string]string) Hint {
	n := parseName(name)
	text := trim(value)
	if h, done := refuse(n, text); done {
		return h
	}
	h := Hint{Kind: Secret, Action: Import}
	if isSeed(n, text) {
		h.Kind = TOTP
		h.warnBrowser(n)
		return h
	}
	if h, done := judgePublic(n, text); done {
		return h
	}
	if isSetting(n, text) || !n.secret && !isSecret(text) {
		return config(n, text)
	}
	if isWeak(text) {
		h.Notes = append(h.Notes, NoteWeak)
	}
	if hasAnyPrefix(text, "sk_live_", "rk_live_") {
		h.Notes = append(h.Notes, NoteLive)
	}
	h.bind(n, text, siblings)
	return h
}

// RotateURL returns the page where a value of this label is rotated, or "".
// It goes by the name alone: by the part behind the last slash, case-blind.
func RotateURL(label string) string { return rotateURL(parseName(label)) }

// skip returns the hint for a variable that an import leaves out.
func skip(k Kind, reason string) Hint { return Hint{Kind: k, Action: Skip, Reason: reason} }

// refuse sorts out what is no value at all, or none that can be taken.
func refuse(n name, text string) (Hint, bool) {
	seed := seedText(text)
	switch {
	case text == "":
		return skip(None, ReasonEmpty), true
	case hasFoldPrefix(text, "solekey://", "op://", "vault:"):
		return skip(None, ReasonReference), true
	case isPlaceholder(text) && !IsSeedURI(text):
		if n.secret {
			return skip(Secret, ReasonPlaceholder), true
		}
		return skip(None, ReasonPlaceholder), true
	case hasFoldPrefix(strings.TrimPrefix(strings.ToLower(seed[:min(len(seed), 24)]), "apple-"), "otpauth://hotp/", "otpauth://hotp?"):
		return skip(None, ReasonCounter), true
	case hasFoldPrefix(seed, "otpauth-migration:"):
		return skip(None, ReasonMigration), true
	}
	return Hint{}, false
}

// judgePublic handles names that build tools put into web pages, and keys
// that are made to be seen.
func judgePublic(n name, text string) (Hint, bool) {
	if hasAnyPrefix(text, "pk_live_", "pk_test_") {
		return skip(None, ReasonPublic), true
	}
	if !n.public {
		return Hint{}, false
	}
	if !isLeak(n, text) {
		return skip(None, ReasonPublic), true
	}
	h := Hint{Kind: Secret, Action: Import, RotateURL: rotateURL(n)}
	if hasAnyPrefix(text, "sk_live_", "rk_live_") {
		h.Notes = append(h.Notes, NoteLive)
	}
	h.warnBrowser(n)
	return h, true
}

func (h *Hint) warnBrowser(n name) {
	if n.public {
		h.Notes = append(h.Notes, NoteBrowser)
		h.Warn = true
	}
}

// config returns the hint for a setting.
func config(n name, text string) Hint {
	h := skip(None, ReasonConfig)
	if n.password && isNumber(text) {
		h.Notes = []string{NoteNumber}
	}
	return h
}

package vault

import (
	"fmt"
	"log/slog"
	"time"
)

const redacted = "[redacted]"

// Secret is one value that was released to an agent, after its audit line
// became durable. Its fields describe it; the value leaves only through
// [Secret.Reveal]. A Secret prints as [redacted] in every format.
type Secret struct {
	_ [0]func() // not comparable

	Label   Label
	Kind    EntryKind
	Field   string
	Fields  []string // readable fields of the entry, this one included
	Version uint32
	Expires time.Time // zero: never

	// A function, because printers follow pointers in unexported fields but
	// enter no function.
	value func() []byte
}

// Reveal returns the value; empty for a Secret that was not released.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return string(s.value())
}

// String returns [redacted].
func (s Secret) String() string { return redacted }

// GoString returns [redacted].
func (s Secret) GoString() string { return redacted }

// Format writes [redacted] for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue returns [redacted].
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted]; it serves JSON as well.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

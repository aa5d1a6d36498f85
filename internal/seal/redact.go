package seal

import (
	"fmt"
	"io"
	"log/slog"
)

const redactedText = "[redacted]"

// redacted is embedded in types that hold keys: they print as [redacted] by
// every verb, in JSON, as text and in logs.
type redacted struct{}

// Format writes [redacted] for every verb.
func (redacted) Format(f fmt.State, _ rune) { io.WriteString(f, redactedText) }

// String returns [redacted].
func (redacted) String() string { return redactedText }

// GoString returns [redacted].
func (redacted) GoString() string { return redactedText }

// LogValue returns [redacted].
func (redacted) LogValue() slog.Value { return slog.StringValue(redactedText) }

// MarshalText returns [redacted].
func (redacted) MarshalText() ([]byte, error) { return []byte(redactedText), nil }

// MarshalJSON returns [redacted] as a JSON string.
func (redacted) MarshalJSON() ([]byte, error) { return []byte(`"` + redactedText + `"`), nil }

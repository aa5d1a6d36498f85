package dotenv

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// String returns the name and the line, never the value.
func (e Entry) String() string { return fmt.Sprintf("%s (line %d)", e.Name, e.Line) }

// GoString returns what String returns.
func (e Entry) GoString() string { return e.String() }

// Format writes what String returns, for every verb.
func (e Entry) Format(s fmt.State, _ rune) { fmt.Fprint(s, e.String()) }

// LogValue returns what String returns.
func (e Entry) LogValue() slog.Value { return slog.StringValue(e.String()) }

// MarshalText returns what String returns. It covers JSON too.
func (e Entry) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// String returns [redacted].
func (f File) String() string { return redacted }

// GoString returns [redacted].
func (f File) GoString() string { return redacted }

// Format writes [redacted], for every verb.
func (f File) Format(s fmt.State, _ rune) { fmt.Fprint(s, redacted) }

// LogValue returns [redacted].
func (f File) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns [redacted]. It covers JSON too.
func (f File) MarshalText() ([]byte, error) { return []byte(redacted), nil }

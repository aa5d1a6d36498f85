package seal

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
)

// Classes of a payload field.
const (
	ClassEntry = 0 // governed by the exposure of the entry
	ClassNever = 3 // never leaves, whatever the entry says
)

// Field is one named value of an entry. It prints as [redacted].
type Field struct {
	Name  string // [a-z0-9_]{1,32}; `value` is the primary one
	Class uint8  // ClassEntry or ClassNever
	Value []byte
}

const (
	maxFieldName = 32
	sizeFieldMin = 1 + 1 + 1 + 4
)

func (f *Field) fields(w *wire) {
	w.str8(&f.Name, 1, maxFieldName)
	w.check(fieldName(f.Name))
	w.u8(&f.Class)
	w.check(f.Class == ClassEntry || f.Class == ClassNever)
	n := uint32(len(f.Value))
	w.u32(&n)
	w.check(n <= MaxValue)
	if w.err == nil {
		w.bytes(&f.Value, int(n))
	}
}

func fieldName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// payload is the fields in ascending order of their names.
func payload(w *wire, fields *[]Field) {
	n := w.count(len(*fields), maxStr8, sizeFieldMin)
	if !w.writing && n > 0 {
		*fields = make([]Field, n)
	}
	for i := range n {
		(*fields)[i].fields(w)
		w.check(i == 0 || (*fields)[i-1].Name < (*fields)[i].Name)
	}
}

// encodePayload sorts, encodes and pads; two fields of one name are refused.
func encodePayload(fields []Field) ([]byte, error) {
	fields = slices.Clone(fields)
	slices.SortFunc(fields, func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
	size := 4 + 1
	for i := range fields {
		size += sizeFieldMin - 1 + len(fields[i].Name) + len(fields[i].Value)
	}
	size = padPayload(size)
	if size < 0 {
		return nil, ErrRefused
	}
	w := framed(size)
	payload(w, &fields)
	return w.finish(padPayload)
}

func decodePayload(pt []byte) ([]Field, error) {
	body, err := unframe(pt, padPayload)
	if err != nil {
		return nil, err
	}
	var fields []Field
	w := &wire{b: body}
	payload(w, &fields)
	if err := w.end(); err != nil {
		return nil, err
	}
	return fields, nil
}

// Format writes [redacted] for every verb.
func (Field) Format(f fmt.State, _ rune) { io.WriteString(f, redactedText) }

// LogValue returns [redacted].
func (Field) LogValue() slog.Value { return slog.StringValue(redactedText) }

// MarshalText returns [redacted]; JSON uses it too.
func (Field) MarshalText() ([]byte, error) { return []byte(redactedText), nil }

package dotenv

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// encoding is how a file is stored. Decoding is a bijection on the files that
// are accepted, so that encoding the text gives the same bytes back.
type encoding uint8

const (
	plain   encoding = iota // UTF-8
	marked                  // UTF-8 behind a byte order mark
	utf16le                 // UTF-16 behind a byte order mark
	utf16be                 // UTF-16 behind a byte order mark
)

func (e encoding) mark() string {
	return [...]string{"", "\xef\xbb\xbf", "\xff\xfe", "\xfe\xff"}[e]
}

func (e encoding) order() binary.ByteOrder {
	if e == utf16be {
		return binary.BigEndian
	}
	return binary.LittleEndian
}

// decode returns the text of a file without its byte order mark. It refuses
// NUL, which no environment can hold, and what is not text.
func decode(raw []byte) (string, encoding, error) {
	enc := plain
	for _, e := range []encoding{marked, utf16le, utf16be} {
		if bytes.HasPrefix(raw, []byte(e.mark())) {
			enc = e
		}
	}
	body := raw[len(enc.mark()):]
	text, err := string(body), error(nil)
	if enc == utf16le || enc == utf16be {
		text, err = decode16(body, enc)
	}
	if err != nil {
		return "", enc, err
	}
	return text, enc, checkText(text)
}

func decode16(body []byte, enc encoding) (string, error) {
	var b strings.Builder
	b.Grow(len(body))
	order := enc.order()
	for len(body) >= 2 {
		r := rune(order.Uint16(body))
		body = body[2:]
		if utf16.IsSurrogate(r) {
			if len(body) < 2 {
				return "", malformed16(b.String())
			}
			r = utf16.DecodeRune(r, rune(order.Uint16(body)))
			if r == utf8.RuneError {
				return "", malformed16(b.String())
			}
			body = body[2:]
		}
		b.WriteRune(r)
	}
	if len(body) > 0 {
		return "", malformed16(b.String())
	}
	return b.String(), nil
}

// malformed16 reports a break behind the given text.
func malformed16(before string) error {
	return &Error{Line: lineAt(before, len(before)), Problem: "malformed UTF-16"}
}

func checkText(text string) error {
	if i := strings.IndexByte(text, 0); i >= 0 {
		return &Error{Line: lineAt(text, i), Problem: "NUL character; save the file as UTF-8"}
	}
	if utf8.ValidString(text) {
		return nil
	}
	at := 0
	for at < len(text) {
		r, n := utf8.DecodeRuneInString(text[at:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		at += n
	}
	return &Error{Line: lineAt(text, at), Problem: "not UTF-8; save the file as UTF-8"}
}

// encode is the inverse of decode.
func (e encoding) encode(text string) []byte {
	out := []byte(e.mark())
	if e == plain || e == marked {
		return append(out, text...)
	}
	order := e.order()
	var unit [2]byte
	for _, u := range utf16.Encode([]rune(text)) {
		order.PutUint16(unit[:], u)
		out = append(out, unit[:]...)
	}
	return out
}

// lineAt returns the number of the line that holds the byte at i.
func lineAt(text string, i int) int {
	line, pos := 1, 0
	for {
		end := lineEnd(text, pos)
		if end >= i || end == len(text) {
			return line
		}
		pos = nextLine(text, end)
		line++
	}
}

// lineEnd returns the index of the line end at or after pos, or the length of
// the text.
func lineEnd(text string, pos int) int {
	if i := strings.IndexAny(text[pos:], "\r\n"); i >= 0 {
		return pos + i
	}
	return len(text)
}

// nextLine returns the index behind the line end at end.
func nextLine(text string, end int) int {
	switch {
	case end == len(text):
		return end
	case strings.HasPrefix(text[end:], "\r\n"):
		return end + 2
	}
	return end + 1
}

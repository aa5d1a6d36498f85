package bridge

import (
	"bufio"
	"bytes"
	"io"
)

// decoder reads the messages of an event stream.
type decoder struct {
	lines *bufio.Reader
	data  []byte
	other bool // the event has another type than message
	half  bool // the last line ended with CR
}

func newDecoder(r io.Reader) *decoder {
	b := bufio.NewReader(r)
	if bom, err := b.Peek(3); err == nil && string(bom) == "\ufeff" {
		_, _ = b.Discard(3)
	}
	return &decoder{lines: b}
}

// next returns the data of the next event of type message that has any. At
// the end of the stream it returns the error; an unfinished event is dropped.
func (d *decoder) next() ([]byte, error) {
	for {
		line, err := d.line()
		if err != nil {
			return nil, err
		}
		if len(line) > 0 {
			d.field(line)
			continue
		}
		data, other := d.data, d.other
		d.data, d.other = nil, false
		if len(data) > 0 && !other {
			return data[:len(data)-1], nil
		}
	}
}

// field takes one line of an event.
func (d *decoder) field(line []byte) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "data":
		d.data = append(append(d.data, value...), '\n')
	case "event":
		d.other = len(value) > 0 && string(value) != "message"
	}
}

// line returns a line without its end, which is LF, CR LF or CR.
func (d *decoder) line() ([]byte, error) {
	var line []byte
	for {
		c, err := d.lines.ReadByte()
		if err != nil {
			return nil, err
		}
		half := d.half
		d.half = c == '\r'
		switch {
		case c == '\n' && half: // the second half of a CR LF
		case c == '\n' || c == '\r':
			return line, nil
		default:
			line = append(line, c)
		}
	}
}

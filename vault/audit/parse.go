package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
)

// A log is read line by line, and nearly every line is the very text that the
// journal and [Append] write: fields in their order, plain ASCII. For that
// text parseWritten is enough; it is several times faster than a JSON decoder. It
// takes a line only if it understands every byte of it, and leaves every
// other one to parseJSON, which decides. What both accept they read alike: a
// fuzz target compares them.

// line is a record as JSON.
type line struct {
	Seq  uint64   `json:"seq"`
	Prev string   `json:"prev"`
	V    int      `json:"v"`
	T    string   `json:"t"`
	Ev   Event    `json:"ev"`
	Res  string   `json:"res"`
	Why  string   `json:"why"`
	ID   string   `json:"id"`
	Key  string   `json:"key"`
	Slot string   `json:"slot"`
	Cls  string   `json:"cls"`
	Dst  string   `json:"dst"`
	Via  string   `json:"via"`
	From string   `json:"from"`
	Lab  []string `json:"lab"`
	Gen  uint64   `json:"gen"`
	Was  string   `json:"was"`
	MH   string   `json:"mh"`
	N    int      `json:"n"`
	Note string   `json:"note"`
}

// Parse reads one line, with or without its line feed. Its error is
// [ErrMalformed] and quotes nothing of the line. The texts of the record share
// one copy of the line.
func Parse(b []byte) (Record, error) {
	if r, ok := parseWritten(string(b)); ok {
		return r, nil
	}
	return parseJSON(b)
}

// parseJSON reads any line that is a record, however it is written.
func parseJSON(b []byte) (Record, error) {
	var l line
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return Record{}, ErrMalformed
	}
	if _, err := dec.Token(); err != io.EOF { // More takes a closing bracket for an end
		return Record{}, ErrMalformed
	}
	t, err := time.Parse(time.RFC3339, l.T)
	if err != nil || l.V != 1 || (l.Res != "allow" && l.Res != "deny") {
		return Record{}, ErrMalformed
	}
	r := Record{
		Seq: l.Seq, Prev: l.Prev, Time: t.UTC(), Event: l.Ev, Denied: l.Res == "deny", Why: l.Why,
		Key: l.Key, Slot: l.Slot, Class: l.Cls, Dest: l.Dst, Via: l.Via, From: l.From,
		Gen: l.Gen, N: l.N, Note: l.Note,
	}
	if l.ID != "" {
		if r.Identity, err = identity.ParseID(l.ID); err != nil {
			return Record{}, ErrMalformed
		}
	}
	if !unhex(r.Was[:], l.Was) || !unhex(r.Is[:], l.MH) {
		return Record{}, ErrMalformed
	}
	for _, s := range l.Lab {
		ref, err := parseRef(s)
		if err != nil {
			return Record{}, err
		}
		r.Labels = append(r.Labels, ref)
	}
	return r, nil
}

func parseRef(s string) (Ref, error) {
	var ref Ref
	tag, ver, ok := strings.Cut(s, ":")
	n, err := strconv.ParseUint(ver, 10, 32)
	if !ok || err != nil || tag == "" || !unhex(ref.Tag[:], tag) {
		return Ref{}, ErrMalformed
	}
	ref.Version = uint32(n)
	return ref, nil
}

// unhex fills dst from s; an empty s leaves it zero.
func unhex(dst []byte, s string) bool {
	if s == "" {
		return true
	}
	if len(s) != 2*len(dst) {
		return false
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

// scan is the rest of a line; bad once it is not what is written.
type scan struct {
	s   string
	bad bool
}

// parseWritten reads a line as it is written.
func parseWritten(s string) (r Record, ok bool) {
	p := scan{s: s}
	p.expect(`{"seq":`)
	r.Seq = p.number()
	p.expect(`,"prev":"`)
	r.Prev = p.text()
	p.expect(`,"v":1,"t":"`)
	t := p.text()
	p.expect(`,"ev":"`)
	r.Event = Event(p.text())
	p.expect(`,"res":"`)
	res := p.text()
	if p.bad || res != "allow" && res != "deny" {
		return Record{}, false
	}
	r.Denied = res == "deny"
	at, err := time.Parse(time.RFC3339, t)
	if err != nil {
		return Record{}, false
	}
	r.Time = at.UTC()
	p.fields(&r)
	return r, !p.bad && (p.s == "}" || p.s == "}\n")
}

// fields reads the fields that may be left out.
func (p *scan) fields(r *Record) {
	p.option(`,"why":"`, &r.Why)
	if p.skip(`,"id":"`) {
		p.hex(r.Identity[:])
		p.bad = p.bad || r.Identity.IsZero()
	}
	p.option(`,"key":"`, &r.Key)
	p.option(`,"slot":"`, &r.Slot)
	p.option(`,"cls":"`, &r.Class)
	p.option(`,"dst":"`, &r.Dest)
	p.option(`,"via":"`, &r.Via)
	p.option(`,"from":"`, &r.From)
	if p.skip(`,"lab":["`) {
		p.labels(r)
	}
	if p.skip(`,"gen":`) {
		r.Gen = p.number()
	}
	if p.skip(`,"was":"`) {
		p.hex(r.Was[:])
	}
	if p.skip(`,"mh":"`) {
		p.hex(r.Is[:])
	}
	if p.skip(`,"n":`) {
		r.N = p.int()
	}
	p.option(`,"note":"`, &r.Note)
}

// labels reads TAG:VER"] or TAG:VER","TAG:VER"] and so on.
func (p *scan) labels(r *Record) {
	for !p.bad {
		var ref Ref
		if len(p.s) < 2*len(ref.Tag)+1 {
			p.bad = true
			return
		}
		p.digits(ref.Tag[:])
		p.expect(":")
		v := p.number()
		ref.Version = uint32(v)
		p.bad = p.bad || v != uint64(ref.Version)
		r.Labels = append(r.Labels, ref)
		if p.skip(`"]`) {
			return
		}
		p.expect(`","`)
	}
}

// skip passes over a text if it is next.
func (p *scan) skip(text string) bool {
	rest, ok := strings.CutPrefix(p.s, text)
	p.s = rest
	return ok && !p.bad
}

func (p *scan) expect(text string) {
	if !p.skip(text) {
		p.bad = true
	}
}

// option reads a text field if it is next.
func (p *scan) option(name string, to *string) {
	if p.skip(name) {
		*to = p.text()
	}
}

// text reads the rest of a string that needs no decoding, and its quote.
func (p *scan) text() string {
	for i := range len(p.s) {
		switch c := p.s[i]; {
		case c == '"':
			out := p.s[:i]
			p.s = p.s[i+1:]
			return out
		case c < ' ' || c > '~' || c == '\\':
			p.bad = true
			return ""
		}
	}
	p.bad = true
	return ""
}

// hex reads hex digits that fill dst, and a quote.
func (p *scan) hex(dst []byte) {
	p.digits(dst)
	p.expect(`"`)
}

// digits reads hex digits that fill dst.
func (p *scan) digits(dst []byte) {
	n := 2 * len(dst)
	if len(p.s) < n {
		p.bad = true
		return
	}
	if _, err := hex.Decode(dst, []byte(p.s[:n])); err != nil {
		p.bad = true
	}
	p.s = p.s[n:]
}

// maxDigits is how many digits of a number fit for certain.
const maxDigits = 18

// number reads a number as JSON writes it: no sign, no leading zero.
func (p *scan) number() uint64 {
	var n uint64
	i := 0
	for i < len(p.s) && p.s[i] >= '0' && p.s[i] <= '9' && i <= maxDigits {
		n = 10*n + uint64(p.s[i]-'0')
		i++
	}
	if i == 0 || i > maxDigits || i > 1 && p.s[0] == '0' {
		p.bad = true
	}
	p.s = p.s[i:]
	return n
}

func (p *scan) int() int {
	n := p.number()
	p.bad = p.bad || uint64(int(n)) != n
	return int(n)
}

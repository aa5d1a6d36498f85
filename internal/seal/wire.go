package seal

import "encoding/binary"

// wire reads or writes one plaintext. Each object has one fields method that
// serves both directions, so that what is written is what is read. The first
// thing out of order sets err; from then on reads yield zeros and counts are 0.
//
// Slices that wire reads are parts of the plaintext, which is made for one
// open and belongs to its result.
type wire struct {
	b       []byte // reading: what is left; writing: what is written
	writing bool
	err     error
}

// check refuses the object unless ok.
func (w *wire) check(ok bool) {
	if !ok && w.err == nil {
		w.err = ErrRefused
	}
}

// end refuses bytes that trail, and returns the verdict.
func (w *wire) end() error {
	w.check(w.writing || len(w.b) == 0)
	return w.err
}

// take cuts n bytes off the input; nil once something is out of order.
func (w *wire) take(n int) []byte {
	w.check(n <= len(w.b))
	if w.err != nil {
		return nil
	}
	p := w.b[:n:n]
	w.b = w.b[n:]
	return p
}

func (w *wire) u8(v *uint8) {
	if w.writing {
		w.b = append(w.b, *v)
	} else if p := w.take(1); p != nil {
		*v = p[0]
	}
}

func (w *wire) u16(v *uint16) {
	if w.writing {
		w.b = binary.BigEndian.AppendUint16(w.b, *v)
	} else if p := w.take(2); p != nil {
		*v = binary.BigEndian.Uint16(p)
	}
}

func (w *wire) u32(v *uint32) {
	if w.writing {
		w.b = binary.BigEndian.AppendUint32(w.b, *v)
	} else if p := w.take(4); p != nil {
		*v = binary.BigEndian.Uint32(p)
	}
}

func (w *wire) u64(v *uint64) {
	if w.writing {
		w.b = binary.BigEndian.AppendUint64(w.b, *v)
	} else if p := w.take(8); p != nil {
		*v = binary.BigEndian.Uint64(p)
	}
}

// time is a moment in Unix milliseconds, 0 for none.
func (w *wire) time(v *int64) {
	u := uint64(*v)
	w.u64(&u)
	*v = int64(u)
	w.check(*v >= 0)
}

// fixed fills or writes p.
func (w *wire) fixed(p []byte) {
	if w.writing {
		w.b = append(w.b, p...)
	} else {
		copy(p, w.take(len(p)))
	}
}

// secret is fixed for key bytes: reading clears them in the plaintext.
func (w *wire) secret(p []byte) {
	if w.writing {
		w.b = append(w.b, p...)
		return
	}
	from := w.take(len(p))
	copy(p, from)
	clear(from)
}

// bytes is a slice of a length known beforehand.
func (w *wire) bytes(p *[]byte, n int) {
	if w.writing {
		w.check(len(*p) == n)
		w.b = append(w.b, *p...)
	} else if n > 0 {
		*p = w.take(n)
	}
}

// rest is a slice that reaches to the end.
func (w *wire) rest(p *[]byte) {
	n := len(w.b)
	if w.writing {
		n = len(*p)
	}
	w.bytes(p, n)
}

// blob16 is a slice of at most 65,535 bytes.
func (w *wire) blob16(p *[]byte) {
	w.check(len(*p) <= 1<<16-1)
	n := uint16(len(*p))
	w.u16(&n)
	w.bytes(p, int(n))
}

// str8 is an ASCII string of min to max bytes.
func (w *wire) str8(s *string, min, max int) {
	if !w.writing {
		w.readStr8(s)
	}
	w.check(len(*s) >= min && len(*s) <= max && ascii(*s))
	if w.writing {
		w.b = append(append(w.b, byte(len(*s))), *s...)
	}
}

func (w *wire) readStr8(s *string) {
	var n uint8
	w.u8(&n)
	if p := w.take(int(n)); len(p) > 0 {
		*s = string(p)
	}
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// count is the length of a list of at most max items, of which each takes at
// least size bytes: what cannot fit is refused before anything is allocated.
func (w *wire) count(n, max, size int) int {
	w.check(n <= max)
	c := uint8(n)
	w.u8(&c)
	w.check(int(c) <= max && (w.writing || int(c)*size <= len(w.b)))
	if w.err != nil {
		return 0
	}
	return int(c)
}

// strs is a list of at most max strings, none of them empty.
func (w *wire) strs(list *[]string, max int) {
	n := w.count(len(*list), max, 2)
	if !w.writing && n > 0 {
		*list = make([]string, n)
	}
	for i := range n {
		w.str8(&(*list)[i], 1, maxStr8)
	}
}

// zeros is n reserved bytes.
func (w *wire) zeros(n int) {
	if w.writing {
		w.b = append(w.b, make([]byte, n)...)
		return
	}
	w.check(allZero(w.take(n)))
}

func allZero(b []byte) bool {
	var word uint64
	for ; len(b) >= 8; b = b[8:] {
		word |= binary.NativeEndian.Uint64(b)
	}
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0 && word == 0
}

// framed starts a plaintext of about n bytes that has its length in front.
func framed(n int) *wire { return &wire{b: make([]byte, 4, 4+n), writing: true} }

// finish fills in the length and pads to what size says for it.
func (w *wire) finish(size func(int) int) ([]byte, error) {
	total := size(len(w.b))
	w.check(total >= len(w.b))
	if w.err != nil {
		clear(w.b)
		return nil, w.err
	}
	binary.BigEndian.PutUint32(w.b, uint32(len(w.b)-4))
	return append(w.b, make([]byte, total-len(w.b))...), nil
}

// unframe returns the bytes that the length in front counts, and refuses any
// other padding than finish makes.
func unframe(b []byte, size func(int) int) ([]byte, error) {
	if len(b) < 4 {
		return nil, ErrRefused
	}
	n := uint64(binary.BigEndian.Uint32(b)) + 4
	if n > uint64(len(b)) || size(int(n)) != len(b) || !allZero(b[n:]) {
		return nil, ErrRefused
	}
	return b[4:n:n], nil
}

// Plaintexts are padded so that their size tells little. A size function says
// to how many bytes n bytes are padded, -1 if that is too many.

func pad512(n int) int { return (n + 511) &^ 511 }

func pad256(n int) int { return (n + 255) &^ 255 }

func padHeader(n int) int {
	if n > MaxHeader {
		return -1
	}
	return pad512(n)
}

// padPayload is 64 * 2^k, k = 0..11.
func padPayload(n int) int {
	for size := 64; size <= MaxPayload+4; size *= 2 {
		if n <= size {
			return size
		}
	}
	return -1
}

// flag is a byte that is 0 or bit.
func (w *wire) flag(v *bool, bit uint8) {
	var b uint8
	if *v {
		b = bit
	}
	w.u8(&b)
	w.check(b == 0 || b == bit)
	*v = b == bit
}

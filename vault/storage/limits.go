package storage

import "fmt"

// The limits of the seam. Engines check them before anything else, with
// [CheckRead], [CheckList], [CheckIdentities], [CheckBatch] and [CheckBodies].
const (
	MaxKey    = 64        // bytes of a key; it has at least one
	MaxValue  = 256 << 10 // bytes of a value
	MaxMeta   = 64 << 10  // bytes of a Meta
	MaxKeys   = 256       // keys per Get
	MaxPuts   = 4096      // Ops with a value per Commit
	MaxOps    = 8192      // Ops per Commit: a tombstone deletes every key at once
	MaxBatch  = 8 << 20   // bytes of Meta, keys and values per Commit
	MaxPage   = 8 << 20   // bytes of values at which a page of List ends
	MaxBodies = 256       // bodies per Append
	MaxBody   = 2 << 10   // bytes of a body
	MaxLimit  = 1000      // items of a page; at least one is asked for
)

// CheckRead refuses arguments of Get that are outside the limits.
func CheckRead(keys ...string) error {
	if len(keys) > MaxKeys {
		return fmt.Errorf("%d keys, at most %d: %w", len(keys), MaxKeys, ErrTooLarge)
	}
	for _, k := range keys {
		if err := checkKey(k); err != nil {
			return err
		}
	}
	return checkRepeats(len(keys), func(i int) string { return keys[i] })
}

// CheckList refuses arguments of List that are outside the limits. An empty
// after is the beginning.
func CheckList(after string, limit int) error {
	if len(after) > MaxKey {
		return fmt.Errorf("position of %d bytes, at most %d: %w", len(after), MaxKey, ErrTooLarge)
	}
	return CheckIdentities(limit)
}

// CheckIdentities refuses a page limit that is outside 1 to [MaxLimit].
func CheckIdentities(limit int) error {
	if limit < 1 {
		return fmt.Errorf("page limit %d: %w", limit, ErrInvalid)
	}
	if limit > MaxLimit {
		return fmt.Errorf("page limit %d, at most %d: %w", limit, MaxLimit, ErrTooLarge)
	}
	return nil
}

// CheckBatch refuses a batch that is outside the limits.
func CheckBatch(b Batch) error {
	if len(b.Meta) > MaxMeta {
		return fmt.Errorf("meta of %d bytes, at most %d: %w", len(b.Meta), MaxMeta, ErrTooLarge)
	}
	if len(b.Ops) > MaxOps {
		return fmt.Errorf("%d changes, at most %d: %w", len(b.Ops), MaxOps, ErrTooLarge)
	}
	puts := 0
	for _, op := range b.Ops {
		if err := checkKey(op.Key); err != nil {
			return err
		}
		if len(op.Val) > MaxValue {
			return fmt.Errorf("value of %d bytes, at most %d: %w", len(op.Val), MaxValue, ErrTooLarge)
		}
		if op.Val != nil {
			puts++
		}
	}
	if puts > MaxPuts {
		return fmt.Errorf("%d values, at most %d: %w", puts, MaxPuts, ErrTooLarge)
	}
	if n := b.Size(); n > MaxBatch {
		return fmt.Errorf("batch of %d bytes, at most %d: %w", n, MaxBatch, ErrTooLarge)
	}
	return checkRepeats(len(b.Ops), func(i int) string { return b.Ops[i].Key })
}

// Size returns the number of bytes of Meta, keys and values together.
func (b Batch) Size() int {
	n := len(b.Meta)
	for _, op := range b.Ops {
		n += len(op.Key) + len(op.Val)
	}
	return n
}

// CheckBodies refuses journal bodies that are outside the limits, or that are
// not one JSON object each by their first and last bytes.
func CheckBodies(bodies ...[]byte) error {
	if len(bodies) == 0 {
		return fmt.Errorf("no body: %w", ErrInvalid)
	}
	if len(bodies) > MaxBodies {
		return fmt.Errorf("%d bodies, at most %d: %w", len(bodies), MaxBodies, ErrTooLarge)
	}
	for _, b := range bodies {
		if len(b) > MaxBody {
			return fmt.Errorf("body of %d bytes, at most %d: %w", len(b), MaxBody, ErrTooLarge)
		}
		if !bodyShaped(b) {
			return fmt.Errorf("body is not one JSON object on one line: %w", ErrInvalid)
		}
	}
	return nil
}

// bodyShaped reports whether b looks like a JSON object with a member. JSON
// has no raw control characters, so a NUL in a journal file is never a line.
func bodyShaped(b []byte) bool {
	if len(b) < len(`{"":0}`) || b[0] != '{' || b[1] != '"' || b[len(b)-1] != '}' {
		return false
	}
	for _, c := range b {
		if c < ' ' {
			return false
		}
	}
	return true
}

func checkKey(k string) error {
	if len(k) == 0 {
		return fmt.Errorf("empty key: %w", ErrInvalid)
	}
	if len(k) > MaxKey {
		return fmt.Errorf("key of %d bytes, at most %d: %w", len(k), MaxKey, ErrTooLarge)
	}
	return nil
}

// fewKeys is the number of keys up to which comparing all pairs is cheaper
// than building a map.
const fewKeys = 8

func checkRepeats(n int, key func(int) string) error {
	if n <= fewKeys {
		for i := range n {
			for j := range i {
				if key(i) == key(j) {
					return errRepeat
				}
			}
		}
		return nil
	}
	seen := make(map[string]struct{}, n)
	for i := range n {
		seen[key(i)] = struct{}{}
	}
	if len(seen) != n {
		return errRepeat
	}
	return nil
}

var errRepeat = fmt.Errorf("a key is given twice: %w", ErrInvalid)

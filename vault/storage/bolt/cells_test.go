package bolt_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// run returns n bytes from b on, as the specification writes them.
func run(b byte, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b + byte(i)
	}
	return out
}

func TestRowMatchesTheKnownAnswer(t *testing.T) {
	fileID := [16]byte(run(0xf0, 16))
	r := bolt.NewRow(1, 1, [16]byte(run(0, 16)), [32]byte(run(0x70, 32)))
	b := bolt.EncodeRow(r, fileID, 7)
	const want = "52f830f5721ef45c56b4b733ee95cd0c855251419bfde32ea522d91e74a31ff3"
	if got := hex.EncodeToString(b[96:]); got != want {
		t.Fatalf("check of row 7 = %s, want %s", got, want)
	}
	if back, ok := bolt.DecodeRow(b[:], fileID, 7); !ok || back != r {
		t.Fatalf("decoding gives %v, another row", ok)
	}
	if _, ok := bolt.DecodeRow(b[:], fileID, 8); ok {
		t.Error("row 7 is accepted as row 8")
	}
}

// FuzzCell: a row is refused, or written as it was read, as it is and with its
// check made right, which nothing random reaches.
func FuzzCell(f *testing.F) {
	fileID := [16]byte(run(0xf0, 16))
	good := bolt.EncodeRow(bolt.NewRow(2, 9, [16]byte{1}, [32]byte{2}), fileID, 7)
	f.Add(good[:])
	f.Add(make([]byte, bolt.RowSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < bolt.RowSize {
			return
		}
		b = bytes.Clone(b[:bolt.RowSize])
		for range 2 {
			r, ok := bolt.DecodeRow(b, fileID, 7)
			if again := bolt.EncodeRow(r, fileID, 7); ok && !bytes.Equal(b, make([]byte, bolt.RowSize)) && !bytes.Equal(again[:], b) {
				t.Fatal("a row is accepted that is written otherwise")
			}
			sum := bolt.RowSum(fileID, 7, b[:bolt.RowSize-sha256.Size])
			copy(b[bolt.RowSize-sha256.Size:], sum[:])
		}
	})
}

func TestEveryBitOfARowCounts(t *testing.T) {
	fileID := [16]byte(run(0xf0, 16))
	good := bolt.EncodeRow(bolt.NewRow(1, 1, [16]byte{1}, [32]byte{2}), fileID, 7)
	for bit := range 8 * bolt.RowSize {
		b := good
		b[bit/8] ^= 1 << (bit % 8)
		if _, ok := bolt.DecodeRow(b[:], fileID, 7); ok {
			t.Fatalf("bit %d of a row can be flipped", bit)
		}
	}
}

// reencodes wants b to be refused or written as it was read, as it is and with
// its check made right: the SHA-256 of what stands before it.
func reencodes(t *testing.T, what string, b []byte, reencode func([]byte) []byte) {
	t.Helper()
	b = bytes.Clone(b)
	for range 2 {
		if again := reencode(b); again != nil && !bytes.Equal(again, b) {
			t.Fatalf("%s is accepted that is written otherwise", what)
		}
		if at := len(b) - sha256.Size; at >= 0 {
			sum := sha256.Sum256(b[:at])
			copy(b[at:], sum[:])
		}
	}
}

func FuzzCellsHeader(f *testing.F) {
	s, dir := create(f, bolt.Options{})
	b := read(f, filepath.Join(dir, "vault.cells"))
	_ = s.Close()
	f.Add(b[:bolt.BlockSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		reencodes(t, "a header", b, bolt.ReencodeCellsHeader)
		if len(b) < bolt.BlockSize { // so that an input can be short
			reencodes(t, "a header", append(bytes.Clone(b), make([]byte, bolt.BlockSize-len(b))...), bolt.ReencodeCellsHeader)
		}
	})
}

func read(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func write(tb testing.TB, path string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// cellStates returns vault.cells before and after f, which runs on a store
// that holds the cell of id.
func cellStates(t *testing.T, id identity.ID, z storage.Cell, f func(*bolt.Store) error) (before, after []byte) {
	t.Helper()
	s, dir := create(t, bolt.Options{})
	path := filepath.Join(dir, "vault.cells")
	if err := s.PutCell(t.Context(), id, z); err != nil {
		t.Fatal(err)
	}
	before = read(t, path)
	if err := f(s); err != nil {
		t.Fatal(err)
	}
	return before, read(t, path)
}

// cellOf opens a store over the given vault.cells and reads a cell.
func cellOf(t *testing.T, dir string, file []byte, id identity.ID) (*bolt.Store, storage.Cell, error) {
	t.Helper()
	write(t, filepath.Join(dir, "vault.cells"), file)
	s, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Cell(t.Context(), id)
	return s, c, err
}

// TestTornEraseIsBeforeOrAfter writes the four pieces of an erasure in their
// order, each torn at many bytes, and opens each state. Once the second piece
// is whole the cell is gone for good.
func TestTornEraseIsBeforeOrAfter(t *testing.T) {
	id, z := identity.NewID(), storage.Cell(run(0x70, 32))
	before, after := cellStates(t, id, z, func(s *bolt.Store) error { return s.EraseCell(t.Context(), id) })
	if bytes.Contains(after, z[:]) {
		t.Fatal("the cell is in the file after its erasure")
	}
	_, dir := create(t, bolt.Options{})
	headA, headB := span{0, bolt.BlockSize}, span{bolt.BlockSize, bolt.BlockSize}
	rowA, rowB := span{bolt.CellsStart, bolt.RowSize}, span{bolt.CellsStart + bolt.BlockSize, bolt.RowSize}
	order := []span{headA, rowA, headB, rowB}
	step := 7
	for at, torn := range order {
		state := bytes.Clone(before)
		for _, done := range order[:at] {
			copy(state[done.at:done.at+done.n], after[done.at:])
		}
		for cut := 0; cut <= torn.n; cut += step {
			if torn.n == bolt.BlockSize && cut > 56 && cut < torn.n-64 {
				continue // zeros in both
			}
			file := bytes.Clone(state)
			copy(file[torn.at:torn.at+cut], after[torn.at:])
			s, c, err := cellOf(t, dir, file, id)
			switch {
			case err == nil && c == z && at <= 1:
			case errors.Is(err, storage.ErrErased):
			default:
				t.Fatalf("piece %d torn at %d: %v", at, cut, err)
			}
			first := err
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			healed := read(t, filepath.Join(dir, "vault.cells"))
			if errors.Is(first, storage.ErrErased) && bytes.Contains(healed, z[:]) {
				t.Fatalf("piece %d torn at %d: an erased cell is still in the file", at, cut)
			}
			if !bytes.Equal(healed[rowA.at:rowA.at+rowA.n], healed[rowB.at:rowB.at+rowB.n]) {
				t.Fatalf("piece %d torn at %d: the copies were not healed", at, cut)
			}
		}
	}
}

type span struct{ at, n int }

func TestOneDamagedCopyIsHealedAndBothAreReported(t *testing.T) {
	id, z := identity.NewID(), storage.Cell(run(0x70, 32))
	file, _ := cellStates(t, id, z, func(*bolt.Store) error { return nil })
	_, dir := create(t, bolt.Options{})
	for _, c := range []struct {
		name  string
		flips []int
		want  error
	}{
		{"copy A", []int{bolt.CellsStart + 40}, nil},
		{"copy B", []int{bolt.CellsStart + bolt.BlockSize + 40}, nil},
		{"header A", []int{30}, nil},
		{"header B", []int{bolt.BlockSize + 30}, nil},
		{"both copies", []int{bolt.CellsStart + 40, bolt.CellsStart + bolt.BlockSize + 41}, storage.ErrDamaged},
		{"both headers", []int{30, bolt.BlockSize + 30}, storage.ErrDamaged},
	} {
		bad := bytes.Clone(file)
		for _, at := range c.flips {
			bad[at] ^= 4
		}
		s, got, err := cellOf(t, dir, bad, id)
		if !errors.Is(err, c.want) || (c.want == nil && (err != nil || got != z)) {
			t.Errorf("%s damaged: Cell gives %v, want %v", c.name, err, c.want)
		}
		_ = s.Close()
		if healed := read(t, filepath.Join(dir, "vault.cells")); c.want == nil && !bytes.Equal(healed, file) {
			t.Errorf("%s damaged: the file was not healed", c.name)
		}
	}
}

func TestEraseWorksOnADamagedStoreAndADamagedCell(t *testing.T) {
	id, z := identity.NewID(), storage.Cell(run(0x70, 32))
	file, _ := cellStates(t, id, z, func(*bolt.Store) error { return nil })
	_, dir := create(t, bolt.Options{})
	file[bolt.CellsStart+90] ^= 1
	file[bolt.CellsStart+bolt.BlockSize+91] ^= 1
	write(t, filepath.Join(dir, "vault.db"), []byte("nonsense"))
	s, _, err := cellOf(t, dir, file, id)
	if !errors.Is(err, storage.ErrDamaged) {
		t.Fatalf("Cell = %v, want %v", err, storage.ErrDamaged)
	}
	if err := s.EraseCell(t.Context(), id); err != nil {
		t.Fatalf("EraseCell = %v", err)
	}
	if _, err := s.Cell(t.Context(), id); !errors.Is(err, storage.ErrErased) {
		t.Errorf("Cell after EraseCell = %v, want %v", err, storage.ErrErased)
	}
	_ = s.Close()
	if bytes.Contains(read(t, filepath.Join(dir, "vault.cells")), z[8:24]) {
		t.Error("the cell is still in the file")
	}
}

// TestEraseWorksWithoutHeaders: what is known of a row is enough to overwrite
// it. The control is an identity that no row names.
func TestEraseWorksWithoutHeaders(t *testing.T) {
	id, other, z := identity.NewID(), identity.NewID(), storage.Cell(run(0x70, 32))
	_, file := cellStates(t, identity.NewID(), storage.Cell{1}, func(s *bolt.Store) error {
		return errors.Join(s.PutCell(t.Context(), id, z), s.PutCell(t.Context(), other, storage.Cell(run(0x10, 32))))
	})
	for name, damage := range map[string]func(b []byte){
		"a flipped bit in each": func(b []byte) { b[30] ^= 4; b[bolt.BlockSize+30] ^= 4 },
		"a lost file ID in one": func(b []byte) { clear(b[:100]); b[bolt.BlockSize+30] ^= 4 },
		"zeros":                 func(b []byte) { clear(b[:bolt.CellsStart]) },
	} {
		t.Run(name, func(t *testing.T) {
			_, dir := create(t, bolt.Options{})
			bad := bytes.Clone(file)
			damage(bad)
			s, _, err := cellOf(t, dir, bad, id)
			if !errors.Is(err, storage.ErrDamaged) {
				t.Fatalf("Cell = %v, want %v", err, storage.ErrDamaged)
			}
			if err := s.EraseCell(t.Context(), identity.NewID()); !errors.Is(err, storage.ErrDamaged) {
				t.Errorf("EraseCell of no row = %v, want %v", err, storage.ErrDamaged)
			}
			for range 2 {
				if err := s.EraseCell(t.Context(), id); err != nil {
					t.Fatalf("EraseCell = %v", err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			after := read(t, filepath.Join(dir, "vault.cells"))
			if bytes.Contains(after, z[:]) {
				t.Error("the cell is still in the file")
			}
			copy(after, file[:bolt.CellsStart]) // the headers come back
			s, _, err = cellOf(t, dir, after, id)
			if want := map[bool]error{true: storage.ErrDamaged, false: storage.ErrErased}[name == "zeros"]; !errors.Is(err, want) {
				t.Errorf("Cell with its headers back = %v, want %v", err, want)
			}
			if got, err := s.Cell(t.Context(), other); err != nil || got != storage.Cell(run(0x10, 32)) {
				t.Errorf("the other cell gives %v", err)
			}
			_ = s.Close()
		})
	}
}

// TestEraseReachesTheCopyThatIsLeft cuts the file between the copies of a row
// while the store is open.
func TestEraseReachesTheCopyThatIsLeft(t *testing.T) {
	id, z := identity.NewID(), storage.Cell(run(0x70, 32))
	s, dir := create(t, bolt.Options{})
	path := filepath.Join(dir, "vault.cells")
	if err := errors.Join(s.PutCell(t.Context(), id, z), os.Truncate(path, bolt.CellsStart+bolt.BlockSize)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(read(t, path), z[:]) {
		t.Fatal("the cell is not in what is left, so this test shows nothing")
	}
	if err := s.EraseCell(t.Context(), id); err != nil && !errors.Is(err, storage.ErrUnknown) {
		t.Errorf("EraseCell = %v", err)
	}
	if bytes.Contains(read(t, path), z[:]) {
		t.Error("the cell is still in the file")
	}
	if err := s.EraseCell(t.Context(), id); err != nil {
		t.Errorf("EraseCell again = %v", err)
	}
}

func TestCrashWithinPutCellLeavesNoTrap(t *testing.T) {
	id, z := identity.NewID(), storage.Cell(run(0x70, 32))
	_, after := cellStates(t, id, z, func(s *bolt.Store) error { return s.PutCell(t.Context(), identity.NewID(), z) })
	_, dir := create(t, bolt.Options{})
	for cut := range bolt.RowSize {
		file := bytes.Clone(after)
		second := bolt.CellsStart + bolt.RowSize
		clear(file[second+cut : second+bolt.RowSize])
		clear(file[second+bolt.BlockSize:][:bolt.RowSize])
		s, got, err := cellOf(t, dir, file, id)
		if err != nil || got != z {
			t.Fatalf("torn at %d: the other cell gives %v", cut, err)
		}
		fresh := identity.NewID()
		if _, err := s.Cell(t.Context(), fresh); !errors.Is(err, storage.ErrNoCell) {
			t.Fatalf("torn at %d: an unknown cell gives %v", cut, err)
		}
		if err := s.PutCell(t.Context(), fresh, z); err != nil {
			t.Fatalf("torn at %d: PutCell gives %v", cut, err)
		}
		_ = s.Close()
	}
}

package storage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

func TestCellPrintsNothing(t *testing.T) {
	c := storage.Cell(bytes.Repeat([]byte{0xCA}, 32))
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb, c, &c, struct{ C storage.Cell }{c})
	}
	text, err := json.Marshal(map[string]any{"a": c, "b": &c, "c": []storage.Cell{c}})
	if err != nil {
		t.Fatal(err)
	}
	out.Write(text)
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", slog.Any("cell", c))
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", slog.Any("cell", &c))
	for _, form := range []string{"caca", "CACA", "202 202", "202,202", "ysrK", "\xca", `\xca`} {
		if strings.Contains(out.String(), form) {
			t.Errorf("a cell is printed as %q in\n%s", form, out.String())
		}
	}
	if plain := fmt.Sprintf("%x", c[:]); !strings.Contains(plain, "caca") {
		t.Error("the control prints nothing either")
	}
}

func TestErrorsQuoteNoKey(t *testing.T) {
	const canary = "CANARY-KEY"
	for _, err := range []error{
		storage.CheckRead(canary, canary),
		storage.CheckRead(strings.Repeat(canary, 10)),
		storage.CheckList(strings.Repeat(canary, 10), 1),
		storage.CheckBatch(storage.Batch{Ops: []storage.Op{{Key: canary}, {Key: canary}}}),
		storage.CheckBatch(storage.Batch{Ops: []storage.Op{{Key: canary, Val: make([]byte, storage.MaxValue+1)}}}),
		storage.CheckBodies([]byte("[" + canary + "]")),
	} {
		if err == nil || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("error %v, want one without the key", err)
		}
	}
}

func TestRepeatedKeyIsFoundAmongFewAndMany(t *testing.T) {
	for _, n := range []int{1, 2, 7, 8, 9, 200} {
		keys := make([]string, n)
		for i := range keys {
			keys[i] = fmt.Sprint(i)
		}
		if err := storage.CheckRead(keys...); err != nil {
			t.Errorf("%d different keys: %v", n, err)
		}
		if err := storage.CheckRead(append(keys, keys[n-1])...); !errors.Is(err, storage.ErrInvalid) {
			t.Errorf("%d keys and one of them again: %v, want %v", n, err, storage.ErrInvalid)
		}
	}
}

// conflicting is a store that loses the first compare-and-sets.
type conflicting struct {
	storage.Store
	gets, commits int
	lose          int
	err           error
}

func (s *conflicting) Get(context.Context, identity.ID, ...string) (storage.Result, error) {
	s.gets++
	return storage.Result{Rev: storage.Rev(s.gets)}, nil
}

func (s *conflicting) Commit(_ context.Context, _ identity.ID, ifRev storage.Rev, _ storage.Batch) (storage.Rev, error) {
	s.commits++
	if s.commits <= s.lose {
		return 0, fmt.Errorf("committing: %w", s.err)
	}
	return ifRev + 1, nil
}

func TestUpdateRetriesConflictsOnly(t *testing.T) {
	stop := errors.New("stop")
	fn := func(storage.Result) (storage.Batch, error) { return storage.Batch{}, nil }
	for _, c := range []struct {
		name    string
		s       conflicting
		want    error
		commits int
		rev     storage.Rev
	}{
		{"first try", conflicting{}, nil, 1, 2},
		{"two conflicts", conflicting{lose: 2, err: storage.ErrConflict}, nil, 3, 4},
		{"conflicts for ever", conflicting{lose: 99, err: storage.ErrConflict}, storage.ErrConflict, 16, 0},
		{"unknown outcome", conflicting{lose: 1, err: storage.ErrUnknown}, storage.ErrUnknown, 1, 0},
		{"full", conflicting{lose: 1, err: storage.ErrFull}, storage.ErrFull, 1, 0},
	} {
		rev, err := storage.Update(t.Context(), &c.s, identity.ID{}, nil, fn)
		if rev != c.rev || !errors.Is(err, c.want) || c.s.commits != c.commits {
			t.Errorf("%s: Update = %d, %v after %d commits, want %d, %v after %d", c.name, rev, err, c.s.commits, c.rev, c.want, c.commits)
		}
	}
	s := &conflicting{}
	_, err := storage.Update(t.Context(), s, identity.ID{}, nil, func(storage.Result) (storage.Batch, error) { return storage.Batch{}, stop })
	if !errors.Is(err, stop) || s.commits != 0 {
		t.Errorf("Update with a failing function = %v after %d commits", err, s.commits)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = &conflicting{lose: 99, err: storage.ErrConflict}
	if _, err := storage.Update(ctx, s, identity.ID{}, nil, fn); !errors.Is(err, context.Canceled) || s.commits > 2 {
		t.Errorf("Update with an ended context = %v after %d commits", err, s.commits)
	}
}

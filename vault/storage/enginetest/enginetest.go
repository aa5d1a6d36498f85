// Package enginetest proves that an engine keeps the contract of package
// storage, in one process and in several.
//
// An engine's test calls [Run]. Most cases have a control: the same case on an
// engine that is broken on purpose must fail, so that it is known to bite.
// What only an engine's own files can show, such as torn writes, is left to
// the engine's tests.
package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault/storage"
)

// Harness is what the suite needs to know of an engine.
type Harness struct {
	// Open makes an empty store in a new place and returns both. The suite
	// closes the store.
	Open func(t *testing.T) (b storage.Backend, place string)
	// Reopen opens the store at place once more; others may have it open.
	Reopen func(place string) (storage.Backend, error)
	// Proc starts another process that calls [Child] with args. Nil skips the
	// cases that need one.
	Proc func(t *testing.T, args ...string) *Process
}

// Process is a child process. Wait must be called, after Kill too.
type Process struct {
	In   io.WriteCloser
	Out  io.Reader
	Kill func() error
	Wait func() error
}

// Soak reports whether the environment asks for long runs.
func Soak() bool { return os.Getenv("SOLEKEY_SOAK") == "1" }

// testCase is one clause of the contract. run returns what is wrong. broken, if
// set, breaks an engine so that run must find it.
type testCase struct {
	name   string
	run    func(*env) error
	broken func(storage.Backend) storage.Backend
	procs  bool
}

// env is what a case works on.
type env struct {
	t     *testing.T
	ctx   context.Context
	h     Harness
	place string
	storage.Backend
}

// Run runs every case on the engine of h.
func Run(t *testing.T, h Harness) {
	for _, c := range cases() {
		if c.procs && h.Proc == nil {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if err := c.on(t, h, nil); err != nil {
				t.Fatal(err)
			}
		})
		if c.broken == nil {
			continue
		}
		t.Run(c.name+"Control", func(t *testing.T) {
			err := c.on(t, h, c.broken)
			if err == nil {
				t.Fatal("a broken engine passes this case")
			}
			t.Logf("a broken engine fails: %v", err)
		})
	}
}

func (c testCase) on(t *testing.T, h Harness, broken func(storage.Backend) storage.Backend) error {
	b, place := h.Open(t)
	t.Cleanup(func() { _ = b.Close() })
	if broken != nil {
		b = broken(b)
		reopen := h.Reopen
		h.Reopen = func(place string) (storage.Backend, error) {
			b, err := reopen(place)
			if err != nil {
				return nil, err
			}
			return broken(b), nil
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return c.run(&env{t: t, ctx: ctx, h: h, place: place, Backend: b})
}

func cases() []testCase {
	return []testCase{
		{name: "IdentityLivesByCompareAndSet", run: lifecycle, broken: withoutCAS},
		{name: "KeysAreBytesInOrder", run: keys, broken: asText},
		{name: "IdentitiesComeInOrderWithoutTheZeroID", run: identities, broken: withZeroID},
		{name: "LimitsHoldAndNothingPasses", run: limits, broken: withoutLimits},
		{name: "UpdateLosesNoIncrement", run: increments, broken: withoutCAS},
		{name: "GetIsASnapshot", run: snapshot, broken: inTwoReads},
		{name: "PagesOfOneRevAgree", run: pages},
		{name: "JournalIsOneChainAndGroupsStayWhole", run: journal, broken: withSplitGroups},
		{name: "RevokeIsSeenByEveryLaterGet", run: revoke, broken: withStaleReads},
		{name: "BadCallsPoisonNobody", run: poison, broken: withPoison},
		{name: "CancelMeansNotApplied", run: cancels, broken: withLateCommits},
		{name: "RandomOperationsMatchAModel", run: model, broken: withoutDeletes},
		{name: "ErasedCellStaysErased", run: cells, broken: withoutErase},
		{name: "CloseWaitsAndRefuses", run: closing},
		{name: "ResultsBelongToTheCaller", run: ownership, broken: withSharedResults},
		{name: "OneProcessManyHandles", run: handles, broken: withoutCAS},
		{name: "ProcessesSeeEachOther", run: crossing, procs: true, broken: withStaleReads},
		{name: "ProcessesShareOneStore", run: sharing, procs: true},
		{name: "KilledProcessesLoseNothing", run: killing, procs: true},
	}
}

// checkChain follows the chain of a log and returns its bodies.
func checkChain(ctx context.Context, j storage.Journal) (bodies []map[string]any, err error) {
	var prev [32]byte
	var n uint64
	for line, err := range j.Lines(ctx) {
		if err != nil {
			return nil, err
		}
		var m map[string]any
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&m); err != nil {
			return nil, fmt.Errorf("line %d is no JSON: %w", n, err)
		}
		if got := fmt.Sprint(m["seq"]); got != fmt.Sprint(n) {
			return nil, fmt.Errorf("line %d has seq %s", n, got)
		}
		if m["prev"] != hex.EncodeToString(prev[:]) {
			return nil, fmt.Errorf("line %d does not continue line %d", n, n-1)
		}
		prev = sha256.Sum256(line)
		bodies = append(bodies, m)
		n++
	}
	h, err := j.Head(ctx)
	if err != nil {
		return nil, err
	}
	if h.Lines != n || h.Hash != prev {
		return nil, fmt.Errorf("head says %d lines, the log has %d, or its hash differs", h.Lines, n)
	}
	return bodies, nil
}

// id returns a fixed identity.
func id(n byte) identity.ID { return identity.ID{0: n, 15: 1} }

func put(kv ...string) storage.Batch {
	var b storage.Batch
	for i := 0; i < len(kv); i += 2 {
		b.Ops = append(b.Ops, storage.Op{Key: kv[i], Val: []byte(kv[i+1])})
	}
	return b
}

package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/solekey/solekey/identity"
)

// maxAttempts is how often [Update] tries before it gives [ErrConflict] back.
const maxAttempts = 16

// Update reads an identity, lets fn decide, commits what fn returned and
// starts over on [ErrConflict], up to 16 times with growing jitter. It returns
// the revision it made. fn must be pure: it runs once per attempt. An error of
// fn ends the update and is returned as it is; so does [ErrUnknown].
func Update(ctx context.Context, s Store, id identity.ID, keys []string, fn func(Result) (Batch, error)) (Rev, error) {
	for attempt := 1; ; attempt++ {
		rev, err := updateOnce(ctx, s, id, keys, fn)
		if err == nil || !errors.Is(err, ErrConflict) || attempt == maxAttempts {
			return rev, err
		}
		if err := pause(ctx, attempt); err != nil {
			return 0, fmt.Errorf("waiting to retry an update: %w", err)
		}
	}
}

func updateOnce(ctx context.Context, s Store, id identity.ID, keys []string, fn func(Result) (Batch, error)) (Rev, error) {
	r, err := s.Get(ctx, id, keys...)
	if err != nil {
		return 0, err
	}
	b, err := fn(r)
	if err != nil {
		return 0, err
	}
	return s.Commit(ctx, id, r.Rev, b)
}

// pause waits for 0 to 2 ms times attempt.
func pause(ctx context.Context, attempt int) error {
	var b [4]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	limit := 2 * time.Millisecond * time.Duration(attempt)
	t := time.NewTimer(limit * time.Duration(binary.BigEndian.Uint32(b[:])>>8) >> 24)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

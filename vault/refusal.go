package vault

import (
	"context"
	"errors"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/totp"
	"github.com/solekey/solekey/vault/audit"
	"github.com/solekey/solekey/vault/storage"
)

// Word is the one word that names why a call was refused. It is the same in
// the API, the tools, the command line and the audit log. A Word is itself an
// error, which every [Refusal] wraps.
type Word string

// The words of refusal. Exists, Conflict and Internal are for the owner only:
// an agent meets bad_request or unavailable instead.
const (
	Unauthorized     Word = "unauthorized"
	Revoked          Word = "revoked"
	Expired          Word = "expired"
	Forbidden        Word = "forbidden"
	NotFound         Word = "not_found"
	BadRequest       Word = "bad_request"
	RateLimited      Word = "rate_limited"
	AuditUnavailable Word = "audit_unavailable"
	Unavailable      Word = "unavailable"
	Exists           Word = "exists"
	Conflict         Word = "conflict"
	Internal         Word = "internal"
)

// Error returns the word.
func (w Word) Error() string { return string(w) }

// Exit returns the exit code of the command line for this word.
func (w Word) Exit() int {
	switch w {
	case BadRequest:
		return 2
	case NotFound:
		return 3
	case Unauthorized, Revoked, Expired, Forbidden, RateLimited:
		return 4
	case Exists, Conflict:
		return 5
	case Unavailable:
		return 6
	case AuditUnavailable:
		return 7
	}
	return 1
}

// Agent returns the word an agent meets for w: the owner's words are mapped
// to what an agent can act on.
func (w Word) Agent() Word {
	switch w {
	case Exists:
		return BadRequest
	case Conflict, Internal:
		return Unavailable
	}
	return w
}

// Refusal is a refused call as people and agents are told about it. It never
// holds a value, a key, or a name that belongs to another identity. It wraps
// its Word and, for the log inside, its cause.
type Refusal struct {
	Word       Word
	Message    string        // one sentence
	Hint       string        // the next step, empty if there is none
	RetryAfter time.Duration // when the same call may succeed; 0: not by waiting

	cause error
}

// Error returns the message, without the cause.
func (r *Refusal) Error() string { return r.Message }

// Unwrap lets errors.Is find the word and the cause.
func (r *Refusal) Unwrap() []error {
	if r.cause == nil {
		return []error{r.Word}
	}
	return []error{r.Word, r.cause}
}

// Cause returns the error behind the refusal, for logs that name types only;
// nil if the refusal is its own reason.
func (r *Refusal) Cause() error { return r.cause }

func refuse(w Word, message, hint string) *Refusal {
	return &Refusal{Word: w, Message: message, Hint: hint}
}

// The refusals that carry no data of the call.
var (
	errUnauthorized = refuse(Unauthorized, "No valid agent key.", "Tell the owner to create a key: solekey identity create NAME.")
	errRevoked      = refuse(Revoked, "This key has been revoked.", "Stop. Only the owner can issue a new key.")
	errKeyExpired   = refuse(Expired, "This key has expired.", "Stop. Only the owner can issue a new key.")
)

// Refuse turns any error into the refusal that is shown outside. It is the
// only place that knows which error of a lower package means which word; what
// it does not know is Internal, and its text stays inside.
func Refuse(err error) *Refusal {
	var r *Refusal
	if errors.As(err, &r) {
		return r
	}
	out := func(w Word, message, hint string, retry time.Duration) *Refusal {
		return &Refusal{Word: w, Message: message, Hint: hint, RetryAfter: retry, cause: err}
	}
	switch {
	case errors.Is(err, identity.ErrMalformedKey):
		return out(Unauthorized, "This is not a well-formed agent key.", "Pass the whole key, exactly as it was printed.", 0)
	case errors.Is(err, identity.ErrExpired):
		return out(Expired, errKeyExpired.Message, errKeyExpired.Hint, 0)
	case errors.Is(err, identity.ErrForbidden):
		return out(Forbidden, "This key may not make this call.", "Ask the owner for a key with the scope for it.", 0)
	case errors.Is(err, ErrNoStore):
		return out(Unavailable, "There is no store here.", "Tell the owner to run: solekey init.", 0)
	case errors.Is(err, totp.ErrMalformedSeed):
		return out(BadRequest, err.Error(), "Store the otpauth:// URI or the base32 secret that the site shows.", 0)
	case errors.Is(err, audit.ErrUnwritable):
		return out(AuditUnavailable, "The audit log cannot be written, so no secret is given out.", "Tell the owner to run: solekey doctor.", 5*time.Second)
	case errors.Is(err, storage.ErrInvalid), errors.Is(err, storage.ErrTooLarge):
		return out(BadRequest, "The request is over a limit of the store.", "", 0)
	case errors.Is(err, storage.ErrConflict):
		return out(Conflict, "Another process changed this vault at the same time.", "Repeat the command.", 250*time.Millisecond)
	case errors.Is(err, storage.ErrFull):
		return out(Unavailable, "The disk is full.", "Tell the owner to free space, then run: solekey doctor.", 5*time.Second)
	case errors.Is(err, storage.ErrDamaged):
		return out(Unavailable, "The store is damaged here.", "Tell the owner to run: solekey doctor.", 5*time.Second)
	case errors.Is(err, storage.ErrUnavailable), errors.Is(err, storage.ErrUnknown), errors.Is(err, storage.ErrClosed), errors.Is(err, storage.ErrUnsupported):
		return out(Unavailable, "The store is busy or cannot be reached.", "Repeat this call after the wait; if it goes on, tell the owner to run: solekey doctor.", 500*time.Millisecond)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return out(Unavailable, "The call was not finished in time.", "Repeat this call after the wait.", 500*time.Millisecond)
	}
	return out(Internal, "internal error", "", 500*time.Millisecond)
}

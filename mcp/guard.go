package mcp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
)

// The guard: what every request passes before a byte of its body is read.
//
//  1. Host is one of ours: a page cannot reach a loopback endpoint under its
//     own name (DNS rebinding).
//  2. Origin is absent or allowed. There are no CORS headers.
//  3. No key stands in the address or a cookie.
//  4. The method is the one of the path.
//  5. One bearer key, which has not failed too often from its address, nor
//     have all keys from there.
//  6. The key opens a vault, on every request anew. Then it is taken off the
//     request.
//  7. The identity is within its rate.
//  8. The identity has room for one more request; then the body is read. It
//     is small, and the rate counts its size. A stream has limits of its own.

const (
	maxBody    = 256 << 10
	unlockTime = 2 * time.Second
)

// denial is a request that is turned away.
type denial struct {
	status int
	*vault.Refusal
}

func deny(status int, w vault.Word, message, hint string) *denial {
	return &denial{status, &vault.Refusal{Word: w, Message: message, Hint: hint}}
}

const keyHint = "Put the agent key into the Authorization header as a bearer token. There is no OAuth login."

var (
	errHost     = deny(http.StatusForbidden, vault.Forbidden, "This endpoint does not answer to that host name.", "Tell the owner to run: solekey serve --allow-host NAME.")
	errOrigin   = deny(http.StatusForbidden, vault.Forbidden, "Pages of that origin may not call.", "Tell the owner to run: solekey serve --allow-origin ORIGIN.")
	errMethod   = deny(http.StatusMethodNotAllowed, vault.BadRequest, "There is no such method here.", "")
	errLeaked   = deny(http.StatusBadRequest, vault.BadRequest, "A key in an address or a cookie is in logs by now: treat it as leaked.", "Tell the owner to run: solekey identity rotate NAME --leaked. "+keyHint)
	errNoKey    = deny(http.StatusUnauthorized, vault.Unauthorized, "No valid agent key.", keyHint)
	errTooLong  = deny(http.StatusRequestEntityTooLarge, vault.BadRequest, "The request is over 256 KiB.", "")
	errUnread   = deny(http.StatusBadRequest, vault.BadRequest, "The request did not arrive whole.", "")
	errKeyText  = deny(http.StatusBadRequest, vault.BadRequest, "A key does not belong into a message: it is in logs and transcripts by now. Treat it as leaked.", "Tell the owner to run: solekey identity rotate NAME --leaked.")
	errNowhere  = deny(http.StatusNotFound, vault.NotFound, "There is nothing here.", "The endpoint is /mcp; for older clients /sse.")
	errDeadEnd  = deny(http.StatusNotFound, vault.Unauthorized, "No valid agent key.", keyHint)
	errClosing  = &denial{http.StatusServiceUnavailable, &vault.Refusal{Word: vault.Unavailable, Message: "This endpoint is closing.", Hint: "Open the stream again.", RetryAfter: time.Second}}
	errNoStream = deny(http.StatusNotFound, vault.NotFound, "There is no such session for this key.", "Open /sse again.")
)

// host turns away names that are not ours.
func (e *endpoint) host(r *http.Request) *denial {
	name, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		name, port = r.Host, ""
	}
	name = bare(strings.ToLower(name))
	if e.http.Loopback && isLoopback(name) {
		return nil
	}
	if e.hosts[hostPort{name, ""}] || port != "" && e.hosts[hostPort{name, port}] {
		return nil
	}
	return errHost
}

// hostPort is a host name, and a port if only that one will do.
type hostPort struct{ name, port string }

// parseHost reads a name of Hosts as requests are compared with.
func parseHost(s string) hostPort {
	s = strings.ToLower(s)
	if name, port, err := net.SplitHostPort(s); err == nil {
		return hostPort{bare(name), port}
	}
	return hostPort{bare(s), ""}
}

// bare takes the brackets off an IPv6 address.
func bare(name string) string {
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if _, err := netip.ParseAddr(inner); ok && err == nil {
			return inner
		}
	}
	return name
}

func isLoopback(name string) bool {
	a, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && a.IsLoopback()
}

// origin turns away browser pages, but for those that are allowed.
func (e *endpoint) origin(r *http.Request) *denial {
	for _, o := range r.Header.Values("Origin") {
		if slices.Contains(e.http.Origins, o) {
			continue
		}
		u, err := url.Parse(o)
		if err != nil || !e.http.Loopback || u.Scheme != "http" && u.Scheme != "https" || !isLoopback(u.Hostname()) {
			return errOrigin
		}
	}
	return nil
}

// misplaced reports a key where it is written to logs. In an address, where
// nothing of ours looks like one, its beginning is enough.
func misplaced(r *http.Request) bool {
	inCookie := func(c string) bool { return identity.HoldsKey(unescaped(c)) }
	if identity.LooksLikeKey(r.URL.Path) || slices.ContainsFunc(r.Header["Cookie"], inCookie) {
		return true
	}
	return identity.LooksLikeKey(unescaped(r.URL.RawQuery))
}

// unescaped returns s with its percent-encodings decoded, as far as they are
// any.
func unescaped(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	parts := strings.FieldsFunc(s, func(c rune) bool { return strings.ContainsRune("&; ", c) })
	for i, p := range parts {
		if plain, err := url.PathUnescape(p); err == nil {
			parts[i] = plain
		}
	}
	return strings.Join(parts, "&")
}

// bearer returns the one bearer token of a request.
func bearer(r *http.Request) (string, bool) {
	given := r.Header["Authorization"]
	if len(given) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(given[0], " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// address returns where a request comes from, as far as that is known.
func (e *endpoint) address(r *http.Request) netip.Addr {
	if e.http.Forwarded {
		if all := r.Header.Values("X-Forwarded-For"); len(all) > 0 {
			last := all[len(all)-1]
			last = strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
			if a, err := netip.ParseAddr(last); err == nil {
				return a.WithZone("").Unmap()
			}
			if a, err := netip.ParseAddrPort(last); err == nil {
				return a.Addr().WithZone("").Unmap()
			}
		}
	}
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().WithZone("").Unmap()
}

// prove opens the vault of the key that a request carries, and takes the key
// off it.
func (e *endpoint) prove(r *http.Request, via string) (*caller, *denial) {
	text, one := bearer(r)
	delete(r.Header, "Authorization")
	if !one {
		return nil, errNoKey
	}
	from, now := e.address(r), e.server.now()
	key, err := identity.ParseKey(text)
	if err == nil && key.Kind() != identity.Agent {
		err = identity.ErrMalformedKey
	}
	try, ok := e.limits.try(r.Context(), origin{network(from), key.Slot()}, now)
	if !ok {
		return nil, &denial{http.StatusTooManyRequests, tooFast("Too many attempts with keys that open nothing.", time.Second)}
	}
	defer e.limits.done(try)
	if err != nil {
		return nil, errNoKey
	}
	ctx, cancel := context.WithTimeout(r.Context(), unlockTime)
	defer cancel()
	v, err := e.server.unlock(ctx, key, vault.Source{Via: via, Addr: from.String()})
	if err != nil {
		return nil, e.refuse(err, try, key.Slot())
	}
	try.giveBack()
	e.limits.success(key.Slot())
	c := &caller{
		open:  func(context.Context) (*vault.Vault, error) { return v, nil },
		quota: e.limits.of(v.Identity(), now),
	}
	scopes := v.Grant().Scopes
	c.scopes.Store(&scopes)
	if wait := take(c.quota.requests, now, 1); wait > 0 {
		return nil, &denial{http.StatusTooManyRequests, tooFast("This identity makes too many requests.", wait)}
	}
	return c, nil
}

// refuse words why a key opened nothing.
func (e *endpoint) refuse(err error, try attempt, slot identity.SlotID) *denial {
	switch r := vault.Refuse(err); r.Word {
	case vault.Unauthorized:
		return errNoKey
	case vault.Revoked, vault.Expired:
		e.limits.spent(try, slot)
		return &denial{http.StatusUnauthorized, r}
	default:
		try.giveBack() // the store failed, not the key
		if r.Word == vault.Internal {
			// Anybody with the text of a key gets here, as often as it is sent.
			e.faults.Do(func() { e.server.log.Error("unlocking failed", slog.String("cause", chain(r.Cause()))) })
		}
		return &denial{http.StatusServiceUnavailable, r}
	}
}

// body reads what a request carries. Memory is taken as it arrives, not as it
// is announced.
func body(w http.ResponseWriter, r *http.Request) ([]byte, *denial) {
	if r.ContentLength > maxBody {
		w.Header().Set("Connection", "close") // not to wait for what nobody reads
		return nil, errTooLong
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errTooLong
	}
	if err != nil {
		return nil, errUnread
	}
	return text, nil
}

// turnAway answers a denied request.
func turnAway(w http.ResponseWriter, d *denial) {
	h := w.Header()
	if d.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="solekey"`) // without resource_metadata, which starts an OAuth flow
	}
	if d.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((d.RetryAfter+time.Second-1)/time.Second)))
	}
	text, err := compact(shown(d.Refusal))
	if err != nil {
		text = []byte(`{"error":"unavailable","message":"internal error"}`)
	}
	send(w, d.status, "application/json", text)
}

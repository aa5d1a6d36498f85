package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/mcp"
	"github.com/solekey/solekey/vault"
)

// The hosting half of `solekey serve`: what listens, how it starts and how it
// ends. What is answered, and to whom, is decided by package mcp.

const (
	envServe      = "SOLEKEY_SERVE_"
	defaultListen = "127.0.0.1:7653"

	headerTime  = 5 * time.Second
	readTime    = 15 * time.Second
	answerTime  = 10 * time.Second // without a byte of what waits being taken, over HTTP/2
	idleTime    = 90 * time.Second
	headerBytes = 16 << 10

	drainAway  = 5 * time.Second        // for load balancers to look away, off loopback
	drainClose = 300 * time.Millisecond // for callers to see that their connection ends
	drainFresh = 2 * time.Second        // for the first request of accepted connections
	drainCalls = 30 * time.Second       // for running calls
)

// logger returns the log of a server. Nothing that libraries print reaches
// it as it stands.
func (a *app) logger(o serveOptions) *slog.Logger {
	level := map[string]slog.Level{"warn": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug}[o.logLevel]
	how := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" || a.conf.asJSON {
		return slog.New(slog.NewJSONHandler(a.stderr, how))
	}
	return slog.New(slog.NewTextHandler(a.stderr, how))
}

// hosting is one run of serve.
type hosting struct {
	app      *app
	opts     serveOptions
	log      *slog.Logger
	loopback bool

	mcp     *mcp.Server
	public  *http.Server
	private *http.Server
	ready   *readiness
	certs   *acmeCerts // nil: no ACME

	conns   conns
	closing atomic.Bool // answers end their connection

	serving sync.WaitGroup // of the public port
	aside   sync.WaitGroup // everything else
	broken  chan error     // a port that ended by itself
}

// host serves until ctx ends, then drains.
func (a *app) host(ctx context.Context, o serveOptions) error {
	tuneMemory(os.Getenv)
	h := &hosting{app: a, opts: o, log: a.logger(o), broken: make(chan error, 2)}
	slog.SetDefault(slog.New(libraryLog{h.log})) // also what libraries print with package log
	given, err := systemdListener(os.Getenv, os.Getpid())
	if err != nil {
		return err
	}
	if given != nil {
		defer given.Close()
	}
	h.loopback = isLoopback(o.listen)
	if given != nil {
		h.loopback = isLoopback(given.Addr().String())
	}
	if !h.loopback {
		if err := o.exposed(); err != nil {
			return err
		}
	}
	return h.run(ctx, given)
}

// softMemory is what the collector tries to stay under. Ordinary load takes a
// fifth of it; the answers that agents ask for and do not read take more.
const softMemory = 160 << 20

// tuneMemory lets the collector run seldom, which is a third of the CPU under
// load for some MiB, but not while five times of much is in use: a container
// has less. GOMEMLIMIT has the last word.
func tuneMemory(getenv func(string) string) {
	debug.SetGCPercent(400)
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
}

// run opens the store, then the ports.
func (h *hosting) run(ctx context.Context, given net.Listener) error {
	dir, err := h.app.storeDir()
	if err != nil {
		return err
	}
	keeper, err := h.app.openStore(dir)
	if err != nil {
		return err
	}
	defer keeper.Close()
	if err := probe(ctx, keeper); errors.Is(err, keyring.ErrNotPrivate) {
		return failf(exitUsage, "the root key cannot be used: %v", err).hint("solekey doctor")
	} else if err != nil {
		return err
	}
	ended, end := context.WithCancel(context.Background())
	defer func() {
		end()
		h.aside.Wait()
	}()
	if h.opts.acme.cache == "" {
		h.opts.acme.cache = filepath.Join(dir, "acme")
	}
	if err := h.build(ended, keeper); err != nil {
		return err
	}
	public, private, err := h.open(ctx, given)
	if err != nil {
		return err
	}
	h.start(ended, public, private)
	h.announce(public, private)
	select {
	case <-ctx.Done():
		h.drain(public)
	case err = <-h.broken:
		_ = public.Close()
		h.stop()
	}
	if h.private != nil {
		_ = h.private.Close()
	}
	return err
}

// build makes the servers. What it starts ends with the context.
func (h *hosting) build(ended context.Context, keeper *vault.Keeper) error {
	m := newMeter(h.log, version(), h.app.now())
	h.aside.Go(func() { m.reportRefusals(ended) })
	rate := h.opts.rate
	if rate == 0 {
		rate = -1
	}
	h.mcp = mcp.New(keeper.Unlock, mcp.Options{Version: version().Version, Log: h.log, HTTP: mcp.HTTPOptions{
		Hosts: h.opts.names(), Origins: h.opts.origins, Loopback: h.loopback, Forwarded: h.opts.proxied,
		NoSSE: h.opts.noSSE, Rate: rate, Observe: m,
	}})
	h.public = httpServer(h.log, h.lastAnswers(h.mcp.Handler()))
	h.public.ConnState = h.conns.track
	h.ready = &readiness{probe: func(ctx context.Context) error { return probe(ctx, keeper) }, now: h.app.now}
	if h.opts.metrics != "" {
		h.private = httpServer(h.log, privatePort(h.ready, m, isLoopback(h.opts.metrics)))
		h.private.WriteTimeout = readTime
	}
	return h.secure(ended)
}

// secure sets up TLS, if this server ends it.
func (h *hosting) secure(ended context.Context) (err error) {
	switch {
	case h.opts.cert != "":
		h.public.TLSConfig, err = fileTLS(h.opts.cert, h.opts.key, h.log, h.app.now)
	case len(h.opts.acme.domains) > 0:
		if h.certs, err = newACME(ended, h.opts.acme, h.log, h.app.now); err == nil {
			h.public.TLSConfig = h.certs.tls()
		}
	}
	return err
}

// httpServer returns a server that bounds what strangers can make it wait for
// and hold. Answers set deadlines of their own on each write, which in HTTP/2 are
// of the stream; the connection has one as well.
func httpServer(log *slog.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ErrorLog: slog.NewLogLogger(libraryLog{log}, slog.LevelInfo),
		DisableGeneralOptionsHandler: true, // which answers before any guard
		ReadHeaderTimeout:            headerTime, ReadTimeout: readTime, IdleTimeout: idleTime, MaxHeaderBytes: headerBytes,
		HTTP2: &http.HTTP2Config{WriteByteTimeout: answerTime},
	}
}

// lastAnswers says on each answer of a closing server that the connection
// ends with it, in HTTP/2 that no further stream is taken. Closing idle
// connections instead would meet requests on their way.
func (h *hosting) lastAnswers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.closing.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// open listens on the ports; private is nil if there is none.
func (h *hosting) open(ctx context.Context, given net.Listener) (public, private net.Listener, err error) {
	public = given
	if public == nil {
		if public, err = listen(ctx, h.opts.listen, h.opts.takeover); err != nil {
			return nil, nil, err
		}
	}
	if h.loopback && !isLoopback(public.Addr().String()) {
		_ = public.Close()
		return nil, nil, failf(exitUsage, "%s is not loopback on this machine", h.opts.listen).hint("solekey serve --listen " + defaultListen)
	}
	if h.private == nil {
		return public, nil, nil
	}
	if private, err = listen(ctx, h.opts.metrics, h.opts.takeover); err != nil {
		_ = public.Close()
		return nil, nil, err
	}
	return public, private, nil
}

// start serves the ports, and gets the first certificates over the public one.
func (h *hosting) start(ended context.Context, public, private net.Listener) {
	h.serving.Go(func() {
		serve := h.public.Serve
		if h.public.TLSConfig != nil {
			serve = func(l net.Listener) error { return h.public.ServeTLS(l, "", "") }
		}
		h.ended(serve(newBounded(public, h.loopback || h.opts.proxied)))
	})
	if h.private != nil {
		h.aside.Go(func() { h.ended(h.private.Serve(private)) })
	}
	if h.certs != nil {
		for _, d := range h.opts.acme.domains {
			h.aside.Go(func() { h.certs.fetch(ended, d) })
		}
	}
}

// ended reports a port that was not closed by this process.
func (h *hosting) ended(err error) {
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		h.broken <- fmt.Errorf("serving: %w", err)
	}
}

// announce says what is served, once it is.
func (h *hosting) announce(public, private net.Listener) {
	url := h.url(public.Addr())
	more := ""
	if !h.opts.noSSE {
		more = "also /sse"
	}
	if private != nil {
		if more != "" {
			more += "; "
		}
		more += "metrics " + private.Addr().String()
	}
	if more != "" {
		more = " (" + more + ")"
	}
	if h.opts.logFormat == "json" || h.app.conf.asJSON {
		attrs := []slog.Attr{slog.String("url", url), slog.Bool("sse", !h.opts.noSSE)}
		if private != nil {
			attrs = append(attrs, slog.String("metrics", private.Addr().String()))
		}
		h.log.LogAttrs(context.Background(), slog.LevelInfo, "serving", attrs...)
	} else {
		h.app.say("solekey: %s%s", url, more)
	}
	if err := notifySystemd(os.Getenv, "READY=1"); err != nil {
		h.log.Warn("systemd was not told that the server is ready")
	}
}

// url is where clients reach the endpoint, as far as the server knows it.
func (h *hosting) url(at net.Addr) string {
	scheme, standard := "http", "80"
	if h.opts.overTLS() {
		scheme, standard = "https", "443"
	}
	host, port, _ := net.SplitHostPort(at.String())
	names := h.opts.names()
	if h.loopback || h.opts.proxied || len(names) == 0 {
		return scheme + "://" + net.JoinHostPort(host, port) + "/mcp"
	}
	if _, _, err := net.SplitHostPort(names[0]); err == nil || port == standard {
		return scheme + "://" + names[0] + "/mcp"
	}
	return scheme + "://" + net.JoinHostPort(names[0], port) + "/mcp"
}

// drain ends the server so that no caller meets a closed door: first the load
// balancers look away, then callers are told to leave their connections, then
// nothing is accepted any more, and what runs is finished.
func (h *hosting) drain(public net.Listener) {
	wait := h.opts.drain
	if !h.opts.drainSet && !h.loopback {
		wait = drainAway
	}
	h.ready.draining.Store(true)
	_ = notifySystemd(os.Getenv, "STOPPING=1")
	h.log.Info("draining", slog.String("wait", wait.String()))
	pause(wait)
	h.closing.Store(true)
	pause(drainClose)
	_ = public.Close()
	h.stop()
}

func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// stop ends the streams, waits for running calls, and cuts off what does not
// end. The listener is closed. Shutdown comes last: it does not see a
// connection that is handed over meanwhile, and drops requests that it meets
// on their way.
func (h *hosting) stop() {
	h.closing.Store(true)
	h.serving.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), drainCalls)
	defer cancel()
	err := h.mcp.Shutdown(ctx)
	h.conns.settle(ctx, drainFresh)
	if err = errors.Join(err, h.public.Shutdown(ctx)); err != nil {
		h.log.Warn("calls were cut off", slog.String("after", drainCalls.String()))
	}
	_ = h.public.Close()
	h.log.Info("stopped")
}

// libraryLog is where libraries print to. Their texts can quote addresses,
// requests and panics, so what is logged is their kind, in words of ours.
type libraryLog struct{ log *slog.Logger }

// Enabled reports true: the level depends on the text.
func (libraryLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle logs the kind of a text.
func (l libraryLog) Handle(ctx context.Context, r slog.Record) error {
	level, kind := slog.LevelDebug, "a library had something to say"
	switch m := r.Message; {
	case strings.HasPrefix(m, "http: TLS handshake error"):
		kind = "tls handshake failed"
	case strings.HasPrefix(m, "http: Accept error"):
		level, kind = slog.LevelWarn, "accepting connections failed; it is tried again"
	case strings.Contains(m, "panic serving"):
		level, kind = slog.LevelError, "a request ended in a panic"
	}
	l.log.LogAttrs(ctx, level, kind)
	return nil
}

// WithAttrs returns l: attributes of libraries are not logged.
func (l libraryLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup returns l.
func (l libraryLog) WithGroup(string) slog.Handler { return l }

var _ slog.Handler = libraryLog{}

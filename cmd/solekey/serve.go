package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
	idleTime    = 90 * time.Second
	headerBytes = 16 << 10

	drainAway  = 5 * time.Second        // for load balancers to look away, off loopback
	drainClose = 300 * time.Millisecond // for callers to see that their connection ends
	drainFresh = 2 * time.Second        // for the first request of accepted connections
	drainCalls = 30 * time.Second       // for running calls
)

// serveOptions is what the flags of serve say.
type serveOptions struct {
	listen    string
	takeover  bool
	cert, key string
	acme      acmeOptions
	proxied   bool
	insecure  bool
	hosts     []string
	origins   []string
	noSSE     bool
	rate      int
	metrics   string
	drain     time.Duration
	drainSet  bool
	logLevel  string
	logFormat string
}

func serveCommand(a *app) *cobra.Command {
	var o serveOptions
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve every vault of the store over HTTP",
		Long: `Serve every vault of the store over HTTP: /mcp, and /sse for older clients. Each
request carries an agent key as a bearer token, which alone says whose vault it
reaches.

Other machines reach it over TLS only: with certificate files, which are read
again when they change; with certificates from an ACME authority such as Let's
Encrypt, proved on the listening port, which the internet must reach as 443; or
behind a proxy that ends TLS. --acme-domain accepts the authority's terms of
service. Then --allow-host says under which names the endpoint answers.

--metrics opens a second port with /livez, /readyz and /metrics. It takes no key
and shows no identity, label or value, but belongs to no public network.

Every flag is also read from the environment: SOLEKEY_SERVE_LISTEN for --listen,
lists with commas. A socket from systemd (LISTEN_FDS) takes the place of
--listen. On SIGTERM the server finishes what it has begun and exits; with
--takeover a newer one has its port by then.`,
		Example: `  solekey serve
  solekey serve --listen :443 --acme-domain vault.example.com --acme-email ops@example.com
  solekey serve --listen :7653 --tls-cert cert.pem --tls-key key.pem --allow-host vault.example.com:7653
  SOLEKEY_SERVE_LISTEN=:8080 solekey serve --behind-tls-proxy --allow-host vault.example.com --metrics :9464`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagsFromEnv(cmd.Flags(), cmd.LocalNonPersistentFlags(), envServe, os.Getenv); err != nil {
				return err
			}
			o.drainSet = cmd.Flags().Changed("drain-wait")
			if err := o.check(cmd.Flags()); err != nil {
				return err
			}
			return a.host(cmd.Context(), o)
		},
	}
	o.declare(c)
	return c
}

func (o *serveOptions) declare(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.listen, "listen", defaultListen, "`ADDR` to serve on")
	f.BoolVar(&o.takeover, "takeover", false, "take the port over from a server of the same user, which is stopped afterwards (Linux)")
	f.StringVar(&o.cert, "tls-cert", "", "`FILE` with the certificate chain, PEM")
	f.StringVar(&o.key, "tls-key", "", "`FILE` with the certificate's private key, PEM")
	f.StringSliceVar(&o.acme.domains, "acme-domain", nil, "get certificates for `NAME` by ACME, accepting the authority's terms; may be repeated")
	f.StringVar(&o.acme.email, "acme-email", "", "`ADDRESS` at which the authority reaches the owner")
	f.StringVar(&o.acme.directory, "acme-directory", "", "`URL` of the authority (default Let's Encrypt)")
	f.StringVar(&o.acme.cache, "acme-cache", "", "`DIR` for certificates and their keys (default acme in the data directory)")
	f.BoolVar(&o.proxied, "behind-tls-proxy", false, "serve plain HTTP to a proxy that ends TLS and sets X-Forwarded-For")
	f.BoolVar(&o.insecure, "insecure", false, "serve plain HTTP to other machines: who sees the traffic has the keys")
	f.StringSliceVar(&o.hosts, "allow-host", nil, "answer to `HOST` or HOST:PORT; may be repeated")
	f.StringSliceVar(&o.origins, "allow-origin", nil, "let web pages of `ORIGIN` call, such as https://app.example.com; may be repeated")
	f.BoolVar(&o.noSSE, "no-sse", false, "without /sse and /message, which need one process")
	f.IntVar(&o.rate, "rate", mcp.DefaultRate, "`N` tool calls per second and identity, in bursts of four times as many; 0: no limit")
	f.StringVar(&o.metrics, "metrics", "", "private `ADDR` for /livez, /readyz and /metrics (default none)")
	f.Var(duration{&o.drain}, "drain-wait", "`TIME` to go on accepting after SIGTERM (default 5s, 0s on loopback)")
	f.StringVar(&o.logLevel, "log-level", "info", "`LEVEL` of the log on stderr: warn, info or debug")
	f.StringVar(&o.logFormat, "log-format", "text", "`FORMAT` of the log: text or json")
	_ = c.RegisterFlagCompletionFunc("log-level", words("warn", "info", "debug"))
	_ = c.RegisterFlagCompletionFunc("log-format", words("text", "json"))
}

// check refuses flags that contradict each other.
func (o *serveOptions) check(f *pflag.FlagSet) error {
	if (o.cert == "") != (o.key == "") {
		return failf(exitUsage, "a certificate needs its key: --tls-cert and --tls-key go together").hint("solekey serve --tls-cert FILE --tls-key FILE")
	}
	var ways []string
	for _, w := range []struct {
		flag string
		set  bool
	}{{"--tls-cert", o.cert != ""}, {"--acme-domain", len(o.acme.domains) > 0}, {"--behind-tls-proxy", o.proxied}, {"--insecure", o.insecure}} {
		if w.set {
			ways = append(ways, w.flag)
		}
	}
	if len(ways) > 1 {
		return failf(exitUsage, "%s contradict each other", strings.Join(ways, " and ")).hint("solekey serve with one of them")
	}
	for _, name := range []string{"acme-email", "acme-directory", "acme-cache"} {
		if f.Changed(name) && len(o.acme.domains) == 0 {
			return failf(exitUsage, "--%s needs --acme-domain", name).hint("solekey serve --acme-domain NAME --" + name + " ..")
		}
	}
	if err := o.acme.check(); err != nil {
		return err
	}
	return o.checkValues()
}

// checkValues refuses values that mean nothing.
func (o *serveOptions) checkValues() error {
	if o.rate < 0 {
		return failf(exitUsage, "--rate takes a number of calls, or 0 for no limit")
	}
	switch o.logLevel {
	case "warn", "info", "debug":
	default:
		return failf(exitUsage, "--log-level takes warn, info or debug")
	}
	if o.logFormat != "text" && o.logFormat != "json" {
		return failf(exitUsage, "--log-format takes text or json")
	}
	for _, h := range o.hosts {
		if h == "" || strings.ContainsAny(h, "/ @*") {
			return failf(exitUsage, "--allow-host takes HOST or HOST:PORT, without https://").hint("solekey serve --allow-host vault.example.com")
		}
	}
	for _, s := range o.origins {
		if u, err := url.Parse(s); err != nil || u.Host == "" || u.Scheme+"://"+u.Host != s {
			return failf(exitUsage, "--allow-origin takes SCHEME://HOST, as browsers send it").hint("solekey serve --allow-origin https://app.example.com")
		}
	}
	for _, addr := range []string{o.listen, o.metrics} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			return failf(exitUsage, "an address is written HOST:PORT or :PORT").hint("solekey serve --listen " + defaultListen)
		}
	}
	return nil
}

// overTLS reports that the server itself ends TLS.
func (o *serveOptions) overTLS() bool { return o.cert != "" || len(o.acme.domains) > 0 }

// exposed refuses to serve other machines in clear by oversight, or under any
// name: a web page could reach the endpoint by a name of its own.
func (o *serveOptions) exposed() error {
	if !o.overTLS() && !o.proxied && !o.insecure {
		return failf(exitUsage, "keys would pass other machines in clear: this address is not loopback").
			hint("solekey serve --acme-domain NAME", "solekey serve --tls-cert FILE --tls-key FILE", "solekey serve --behind-tls-proxy     (or --insecure)")
	}
	if len(o.names()) == 0 {
		return failf(exitUsage, "under which name do clients reach this address? --allow-host is missing").hint("solekey serve --allow-host vault.example.com")
	}
	return nil
}

// names are the names that the endpoint answers to.
func (o *serveOptions) names() []string {
	return append(append([]string(nil), o.hosts...), o.acme.domains...)
}

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
	debug.SetGCPercent(400) // a third of the CPU under load, for some MiB
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
	m := newMeter(h.log, version())
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
		h.private = httpServer(h.log, privatePort(h.ready, m))
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
// and hold. Event streams set deadlines of their own on each write.
func httpServer(log *slog.Logger, h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ErrorLog: slog.NewLogLogger(libraryLog{log}, slog.LevelInfo),
		ReadHeaderTimeout: headerTime, ReadTimeout: readTime, IdleTimeout: idleTime, MaxHeaderBytes: headerBytes,
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
		h.ended(serve(public))
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

// answerWord writes a status and one word.
func answerWord(w http.ResponseWriter, status int, word string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, word+"\n")
}

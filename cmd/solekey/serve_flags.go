package main

import (
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/solekey/solekey/mcp"
)

// The flags of `solekey serve`, and what may not stand together.

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

Other machines reach it over TLS, unless --insecure is given: with certificate
files, which are read again when they change; with certificates from an ACME
authority such as Let's Encrypt, proved on the listening port, which the internet
must reach as 443; or behind a proxy that ends TLS. --acme-domain accepts the
authority's terms of service. --allow-host says under which names the endpoint
answers.

--metrics opens a second port with /livez, /readyz and /metrics. It takes no key
and shows no identity, label or value, but belongs to no public network.

Every flag is also read from the environment: SOLEKEY_SERVE_LISTEN for --listen,
lists with commas. A socket from systemd (LISTEN_FDS) takes the place of
--listen. On SIGTERM the server finishes what it has begun and exits. If it and a
newer server both have --takeover, that one has the port by then; any program of
this user can join such a port.`,
		Example: `  solekey serve
  solekey serve --listen :443 --acme-domain vault.example.com --acme-email ops@example.com
  solekey serve --listen :7653 --tls-cert cert.pem --tls-key key.pem --allow-host vault.example.com:7653
  SOLEKEY_SERVE_LISTEN=:8080 solekey serve --behind-tls-proxy --allow-host vault.example.com --metrics :9464`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flagsFromEnv(cmd.Flags(), cmd.LocalNonPersistentFlags(), envServe, os.Getenv); err != nil {
				return err
			}
			if stray := strayVariables(cmd.LocalNonPersistentFlags(), envServe, os.Environ()); len(stray) > 0 {
				a.warn("no flag of serve has this name, so it says nothing: %s", strings.Join(stray, ", "))
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
	f.BoolVar(&o.takeover, "takeover", false, "share the port with a newer or older server of this user, for an upgrade; both need it (Linux)")
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

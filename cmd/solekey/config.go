package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/solekey/solekey/identity"
)

// Everything the program reads from flags, environment and paths is here.
// The order is flag, environment, default; there is no config file, and no
// flag takes a secret.

const (
	envHome       = "SOLEKEY_HOME"
	envAPIKey     = "SOLEKEY_API_KEY"
	envAPIKeyFile = "SOLEKEY_API_KEY_FILE"
	envNoKeyring  = "SOLEKEY_NO_KEYRING"
)

// config is what flags and environment say.
type config struct {
	home       string
	profile    string
	identities []string
	asJSON     bool
	quiet      bool
	yes        bool
	color      string

	envHome    string
	envKey     string // SOLEKEY_API_KEY; the environment itself is scrubbed
	envHidden  bool   // no other process sees it any more
	envKeyFile string
	noKeyring  bool
	noColor    bool
	dataBase   string // default data directory
	configDir  string
}

// newConfig reads the environment. The key is cloned: a Go environment string
// shares the memory that is scrubbed next.
func newConfig(getenv func(string) string) config {
	c := config{
		color:      "auto",
		envHome:    getenv(envHome),
		envKey:     strings.Clone(getenv(envAPIKey)),
		envKeyFile: getenv(envAPIKeyFile),
		noKeyring:  getenv(envNoKeyring) != "" && getenv(envNoKeyring) != "0",
		noColor:    getenv("NO_COLOR") != "" || getenv("TERM") == "dumb",
	}
	c.dataBase, c.configDir = directories(runtime.GOOS, getenv)
	return c
}

// directories returns the data and the config directory. Both are empty if
// the environment names no home.
func directories(goos string, getenv func(string) string) (data, conf string) {
	if goos == "windows" {
		base := getenv("LOCALAPPDATA")
		if base == "" {
			return "", ""
		}
		return filepath.Join(base, "solekey", "data"), filepath.Join(base, "solekey", "config")
	}
	under := func(xdg string, parts ...string) string {
		if d := getenv(xdg); filepath.IsAbs(d) { // the XDG rule: a relative path is ignored
			return filepath.Join(d, "solekey")
		}
		home := getenv("HOME")
		if home == "" {
			return ""
		}
		return filepath.Join(append([]string{home}, parts...)...)
	}
	return under("XDG_DATA_HOME", ".local", "share", "solekey"), under("XDG_CONFIG_HOME", ".config", "solekey")
}

// globals declares the flags that every command takes.
func (c *config) globals(f *pflag.FlagSet) {
	f.StringArrayVar(&c.identities, "identity", nil, "whose vault: the `NAME` of an identity, repeated or a glob where a command says so")
	f.StringVar(&c.profile, "profile", "", "local `NAME` of a store, an identity and its key")
	f.BoolVar(&c.asJSON, "json", false, "print one JSON object")
	f.BoolVar(&c.quiet, "quiet", false, "print data and errors only")
	f.BoolVar(&c.yes, "yes", false, "answer every question but the name that confirms --shred")
	f.StringVar(&c.color, "color", "auto", "`WHEN` to colour: auto, always or never")
	f.StringVar(&c.home, "home", "", "data directory `DIR` (default $SOLEKEY_HOME, else XDG data home/solekey)")
}

// check judges the global flags once they are parsed.
func (c *config) check() error {
	switch c.color {
	case "auto", "always", "never":
	default:
		return failf(exitUsage, "--color takes auto, always or never")
	}
	if c.profile != "" && identity.CheckName(c.profile) != nil {
		return failf(exitUsage, "--profile: %v", identity.ErrMalformedName)
	}
	return nil
}

// dataDir returns the data directory when no profile names another.
func (c *config) dataDir() (string, error) {
	for _, d := range []string{c.home, c.envHome, c.dataBase} {
		if d != "" {
			return filepath.Abs(d)
		}
	}
	return "", failf(exitUsage, "no data directory: neither --home nor %s nor a home directory is set", envHome).hint("solekey --home DIR COMMAND")
}

// configPath returns a path inside the config directory.
func (c *config) configPath(parts ...string) (string, error) {
	if c.configDir == "" {
		return "", failf(exitUsage, "no config directory: neither XDG_CONFIG_HOME nor HOME is set").hint("export XDG_CONFIG_HOME=DIR")
	}
	return filepath.Join(append([]string{c.configDir}, parts...)...), nil
}

// keyFlags are the flags that say whose key acts, where no profile does.
type keyFlags struct {
	file string
	fd   int
}

func (k *keyFlags) declare(f *pflag.FlagSet) {
	f.StringVar(&k.file, "api-key-file", "", "`FILE` that holds the key, readable by you alone")
	f.IntVar(&k.fd, "api-key-fd", -1, "file descriptor `N` that the key is read from")
}

// flagProblem returns what is wrong with a flag without what was passed.
func flagProblem(err error) string {
	if f, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		name := "--" + f.GetFlag().Name
		if own, ok := errors.AsType[*failure](err); ok {
			return name + ": " + own.message
		}
		return name + " takes a value of type " + f.GetFlag().Value.Type()
	}
	if f, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return "--" + f.GetFlag().Name + " needs a value"
	}
	if f, ok := errors.AsType[*pflag.NotExistError](err); ok && f.GetSpecifiedShortnames() == "" {
		return "unknown flag --" + f.GetSpecifiedName()
	}
	return "unknown flag"
}

// duration is a flag value such as 30m, 24h or 90d.
type duration struct{ d *time.Duration }

func (v duration) String() string {
	if v.d == nil || *v.d == 0 {
		return ""
	}
	return v.d.String()
}
func (duration) Type() string { return "duration" }
func (v duration) Set(s string) (err error) {
	*v.d, err = parseDuration(s)
	return err
}

// parseDuration reads 30m, 24h, 90d, and what time.ParseDuration reads.
func parseDuration(s string) (time.Duration, error) {
	bad := failf(exitUsage, "a duration is written 30m, 24h or 90d")
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil || n > 36500 {
			return 0, bad
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

// parseEnd reads a duration from now, a date or an RFC 3339 time, which must
// lie ahead. The empty text is the zero time: never.
func parseEnd(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	end, err := time.Parse(time.RFC3339, s)
	if err != nil {
		end, err = time.Parse(time.DateOnly, s)
	}
	if err != nil {
		d, err := parseDuration(s)
		if err != nil || d == 0 {
			return time.Time{}, failf(exitUsage, "%s takes a duration (30m, 24h, 90d), a date or an RFC 3339 time", flag)
		}
		return now.Add(d), nil
	}
	if !end.After(now) {
		return time.Time{}, failf(exitUsage, "%s lies in the past", flag)
	}
	return end, nil
}

// grantFlags are the flags that say what a key may do.
type grantFlags struct {
	scopes  []string
	globs   []string
	expires string
}

func (g *grantFlags) declare(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&g.scopes, "scope", nil, "what the key may do: `S,..` of list,read,code,use,write (default all but write)")
	f.StringSliceVar(&g.globs, "labels", nil, "label `GLOB` that the key is bound to; may be repeated (default every label)")
	f.StringVar(&g.expires, "expires", "", "`WHEN` the key ends: 30m, 24h, 90d, a date or a time (default never)")
	_ = c.RegisterFlagCompletionFunc("scope", words("list", "read", "code", "use", "write"))
}

// grant returns what the flags say.
func (g *grantFlags) grant(now time.Time) (identity.Grant, error) {
	out := identity.Grant{Scopes: identity.DefaultScopes}
	var err error
	if len(g.scopes) > 0 {
		if out.Scopes, err = identity.ParseScopes(g.scopes); err != nil {
			return identity.Grant{}, failf(exitUsage, "--scope: %v", err)
		}
	}
	for _, s := range g.globs {
		glob, err := identity.ParseGlob(s)
		if err != nil {
			return identity.Grant{}, failf(exitUsage, "--labels: %v", err)
		}
		out.Globs = append(out.Globs, glob)
	}
	out.Expires, err = parseEnd("--expires", g.expires, now)
	return out, err
}

// envName returns the name under which the environment holds a flag:
// PREFIX_NAME for --name, with underscores for dashes.
func envName(prefix, flag string) string {
	return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// strayVariables returns the names of set variables that begin with prefix and
// are of no flag,
// such as misspelt ones.
func strayVariables(own *pflag.FlagSet, prefix string, environ []string) []string {
	known := map[string]bool{}
	own.VisitAll(func(f *pflag.Flag) { known[envName(prefix, f.Name)] = true })
	var out []string
	for _, v := range environ {
		if name, value, _ := strings.Cut(v, "="); value != "" && strings.HasPrefix(name, prefix) && !known[name] {
			out = append(out, name)
		}
	}
	return out
}

// flagsFromEnv sets those of own that are not on the command line from the
// environment. An empty variable says nothing. What it holds is not repeated in
// an error.
func flagsFromEnv(all, own *pflag.FlagSet, prefix string, getenv func(string) string) error {
	var problem error
	own.VisitAll(func(f *pflag.Flag) {
		name := envName(prefix, f.Name)
		text := getenv(name)
		if f.Changed || text == "" || f.Name == "help" || problem != nil {
			return
		}
		if err := all.Set(f.Name, text); err != nil {
			problem = failf(exitUsage, "%s: %s", name, flagProblem(err))
		}
	})
	return problem
}

// executable returns how an MCP client starts this program: its absolute
// path, since clients have another PATH than shells.
func executable() string {
	p, err := os.Executable()
	if err != nil {
		return "solekey"
	}
	return p
}

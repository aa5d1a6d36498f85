package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

// entryFlags say what an entry is, apart from its value.
type entryFlags struct {
	kind     string
	exposure string
	hosts    []string
	in       string
	expires  string
	tags     []string
	noHosts  bool
}

func (e *entryFlags) declare(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.exposure, "exposure", "", "`CLASS` of the value: reveal, agents may read it; use, they may only have it filled in (default that of the store)")
	f.StringArrayVar(&e.hosts, "host", nil, "`HOST` that a request may take it to; may be repeated (default known hosts of this name)")
	f.StringVar(&e.in, "in", "", "`PLACE` in a request where it may stand: header:NAME, query:NAME, path or body")
	f.StringVar(&e.expires, "expires", "", "`WHEN` it ends and is no longer given out: 30m, 24h, 90d, a date or a time")
	f.StringArrayVar(&e.tags, "tag", nil, "`TAG` that list shows; may be repeated")
	f.BoolVar(&e.noHosts, "no-hosts", false, "do not bind it to the known hosts of this name")
	_ = c.RegisterFlagCompletionFunc("exposure", words("reveal", "use"))
}

// entry checks the flags and fills an entry without a value.
func (e *entryFlags) entry(label string, now time.Time) (vault.NewEntry, error) {
	out := vault.NewEntry{Hosts: e.hosts, Placement: e.in, Tags: e.tags}
	var err error
	if out.Label, err = vault.ParseLabel(label); err != nil {
		return out, failf(exitUsage, "not a label: %v", vault.ErrMalformedLabel)
	}
	if e.kind != "" {
		if out.Kind, err = vault.ParseKind(e.kind); err != nil {
			return out, failf(exitUsage, "--kind takes secret, login or totp")
		}
	}
	switch e.exposure {
	case "":
	case "reveal":
		out.Exposure = vault.ExposeReveal
	case "use":
		out.Exposure = vault.ExposeUse
	default:
		return out, failf(exitUsage, "--exposure takes reveal or use")
	}
	if e.in != "" && !placement(e.in) {
		return out, failf(exitUsage, "--in takes header:NAME, query:NAME, path or body")
	}
	for _, h := range e.hosts {
		if !hostName(h) {
			return out, failf(exitUsage, "--host takes a host name such as api.example.com, without scheme or path")
		}
	}
	out.Expires, err = parseEnd("--expires", e.expires, now)
	return out, err
}

func placement(s string) bool {
	if s == "path" || s == "body" {
		return true
	}
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "header", "query":
		return rest != "" && !strings.ContainsAny(rest, "\r\n")
	case "basic", "path":
		return rest != ""
	}
	return false
}

func hostName(s string) bool {
	return s != "" && len(s) <= 253 && !strings.ContainsAny(s, "/ @?#\r\n\t") && !strings.Contains(s, "://")
}

// placementWords shortens a placement for people: `header Authorization`.
func placementWords(p string) string {
	kind, rest, ok := strings.Cut(p, ":")
	if !ok {
		return p
	}
	name, _, _ := strings.Cut(rest, ":")
	return kind + " " + name
}

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/dotenv"
	"github.com/solekey/solekey/vault"
)

// Import reads every file before it opens the store, so that a malformed line
// stops it before anything is written. Each identity gets its entries in one
// commit. The files are touched last, and only if they are still what was
// read.

// importFlags are the flags of import.
type importFlags struct {
	all, replace, literal, noHosts, dryRun, writeRefs, shred bool
	only, skip, kinds                                        []string
	prefix                                                   string
}

func importCommand(a *app) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "import FILE..",
		Short: "Move the secrets of .env files into vaults",
		Long: `Import stores the secrets of .env files as entries of one or more vaults,
all of a file or none of it. It takes what looks like a secret and leaves
settings alone, so that a program that starts without solekey still finds its
port. A line that it cannot read stops it before anything is written; nothing
is expanded and nothing is run. - reads standard input.

The table never shows a value. A label that exists is skipped unless
--replace is given; if the key of the identity is on this machine, the table
says whether its value is the same.`,
		Example: `  solekey import .env --identity claude-code --dry-run
  solekey import .env --identity claude-code --write-refs --shred
  solekey import .env .env.local --identity '*' --only '*_API_KEY'
  sops -d secrets.env | solekey import - --prefix prod/`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runImport(cmd.Context(), f, args) },
	}
	fl := c.Flags()
	fl.BoolVar(&f.all, "all", false, "take settings too, not only secrets")
	fl.StringArrayVar(&f.only, "only", nil, "take the variables that match this glob and nothing else; may be repeated")
	fl.StringArrayVar(&f.skip, "skip", nil, "leave out the variables that match this glob; may be repeated")
	fl.StringArrayVar(&f.kinds, "kind", nil, "NAME=secret, NAME=login or NAME=totp: take NAME as this kind; may be repeated")
	fl.StringVar(&f.prefix, "prefix", "", "put this before each label, such as app/")
	fl.BoolVar(&f.replace, "replace", false, "add a version where a label exists with another value")
	fl.BoolVar(&f.literal, "literal", false, "take ${NAME} and $(command) as they are written")
	fl.BoolVar(&f.noHosts, "no-hosts", false, "do not bind values to the host they are for")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show what would be done")
	fl.BoolVar(&f.writeRefs, "write-refs", false, "replace imported values in the file by solekey:// references")
	fl.BoolVar(&f.shred, "shred", false, "once the values are proven to be in the vault, overwrite and delete the plaintext")
	return c
}

// rules reads the flags that are about variables.
func (f *importFlags) rules() (importRules, error) {
	r := importRules{all: f.all, literal: f.literal, noHosts: f.noHosts, prefix: f.prefix, kinds: make(map[string]vault.EntryKind)}
	var err error
	if r.only, err = globs("--only", f.only); err != nil {
		return r, err
	}
	if r.skip, err = globs("--skip", f.skip); err != nil {
		return r, err
	}
	for _, s := range f.kinds {
		name, word, ok := strings.Cut(s, "=")
		k, err := vault.ParseKind(word)
		if !ok || err != nil {
			return r, failf(exitUsage, "--kind takes NAME=secret, NAME=login or NAME=totp")
		}
		r.kinds[name] = k
	}
	if _, err := vault.ParseLabel(f.prefix + "A"); err != nil {
		return r, failf(exitUsage, "--prefix takes label text: A-Z, a-z, 0-9 and . _ / -, not starting with -")
	}
	return r, nil
}

func globs(flag string, words []string) ([]identity.Glob, error) {
	var out []identity.Glob
	for _, s := range words {
		g, err := identity.ParseGlob(s)
		if err != nil {
			return nil, failf(exitUsage, "%s takes a glob of label characters, * and ?", flag)
		}
		out = append(out, g)
	}
	return out, nil
}

// source is one file as it was read.
type source struct {
	name string // as it was given
	raw  []byte
	file *dotenv.File
	orig *original // set if the file is to be rewritten or destroyed
	open bool      // others on this machine can read it
	vcs  int       // commits of a git repository that hold a file of this name
}

func (a *app) runImport(ctx context.Context, f importFlags, args []string) error {
	rules, err := f.rules()
	if err != nil {
		return err
	}
	sources, err := a.readSources(ctx, args, f.writeRefs, f.shred)
	defer closeSources(sources)
	if err != nil {
		return err
	}
	plan, err := planImport(rules, sources)
	if err != nil {
		return err
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	who, err := a.several(ctx, k)
	if err != nil {
		return err
	}
	j := &importJob{app: a, keeper: k, flags: f, sources: sources, plan: plan}
	if err := j.meet(ctx, who); err != nil {
		return err
	}
	if f.dryRun {
		return j.report(nil)
	}
	if err := j.confirmLoss(ctx); err != nil {
		return err
	}
	if err := j.store(ctx); err != nil {
		return err
	}
	done, err := j.touch(ctx)
	return errors.Join(j.report(done), err)
}

// readSources reads and parses every file. On an error the sources so far are
// returned too, to be closed.
func (a *app) readSources(ctx context.Context, args []string, rewrite, shred bool) ([]source, error) {
	var out []source
	for _, name := range args {
		if slices.ContainsFunc(out, func(s source) bool { return s.name == name }) {
			return out, failf(exitUsage, "%s is given twice", name)
		}
		src, err := a.readSource(name, rewrite, shred)
		out = append(out, src)
		if err != nil {
			return out, err
		}
	}
	for i := range out {
		if out[i].name != "-" {
			out[i].vcs = commitsOf(ctx, out[i].name)
		}
	}
	return out, nil
}

func (a *app) readSource(name string, rewrite, shred bool) (source, error) {
	src := source{name: name}
	err := src.load(a.stdin, rewrite, shred)
	if err != nil {
		if f, ok := errors.AsType[*failure](err); ok {
			return src, f
		}
		return src, failf(exitUsage, "%s cannot be read: %s", name, systemWords(err))
	}
	src.file, err = dotenv.Parse(bytes.NewReader(src.raw))
	if e, ok := errors.AsType[*dotenv.Error](err); ok {
		return src, failf(exitUsage, "%s:%d: %s; nothing was stored", name, e.Line, e.Problem).hint("solekey import " + name + " --dry-run     (once the line is mended)")
	}
	if err == nil && src.open {
		a.warn("%s can be read by other accounts of this machine: chmod 600 %s", name, name)
	}
	return src, err
}

// load reads the bytes of a file, or of standard input for `-`.
func (s *source) load(stdin io.Reader, rewrite, shred bool) error {
	if s.name == "-" {
		if rewrite || shred {
			return failf(exitUsage, "--write-refs and --shred need a file, not standard input")
		}
		var err error
		s.raw, err = io.ReadAll(io.LimitReader(stdin, dotenv.MaxSize+1))
		return err
	}
	if rewrite || shred {
		orig, err := openOriginal(s.name, shred)
		if err != nil {
			return err
		}
		s.orig, s.raw, s.open = orig, orig.raw, openToOthers(orig.info)
		return nil
	}
	f, err := os.Open(s.name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.open = openToOthers(info)
	s.raw, err = io.ReadAll(io.LimitReader(f, dotenv.MaxSize+1))
	return err
}

func closeSources(ss []source) {
	for _, s := range ss {
		if s.orig != nil {
			s.orig.close()
		}
		clear(s.raw)
	}
}

// systemWords says what the system said about a file, without its path.
func systemWords(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return "it is not a file"
}

// verdict is what is known of a label in one vault.
type verdict uint8

const (
	absent  verdict = iota
	exists          // with a value that cannot be compared here
	same            // with this value
	changed         // with another value
)

func (v verdict) String() string {
	return [...]string{absent: "absent", exists: "exists", same: "same", changed: "changed"}[v]
}

// share is one identity's part of an import.
type share struct {
	info    vault.Info
	agent   *vault.Vault // nil: no key of it on this machine
	profile string
	before  map[vault.Label]verdict
	version map[vault.Label]uint32 // that was stored now
}

// importJob is one run of import, from the plan on.
type importJob struct {
	app     *app
	keeper  *vault.Keeper
	flags   importFlags
	sources []source
	plan    []variable
	shares  []*share
	agreed  []int // how many variables of each file may be lost with it
}

// meet finds out which labels exist, and whether their values are the same.
func (j *importJob) meet(ctx context.Context, who []vault.Info) error {
	for _, info := range who {
		s := &share{info: info, before: make(map[vault.Label]verdict), version: make(map[vault.Label]uint32)}
		j.shares = append(j.shares, s)
		have, err := j.keeper.Labels(ctx, info.ID)
		if err != nil {
			return err
		}
		for i := range j.plan {
			v := &j.plan[i]
			at := slices.IndexFunc(have, func(l vault.LabelInfo) bool { return l.Label == v.label })
			if !v.take || at < 0 {
				continue
			}
			if j.flags.replace && !v.told && have[at].Kind == vault.KindTOTP && v.kind != vault.KindTOTP {
				v.becomeSeed()
				if !v.take {
					continue
				}
			}
			if s.before[v.label], err = j.compare(ctx, s, v, have[at]); err != nil {
				return err
			}
		}
		if j.flags.shred {
			if err := j.needAgent(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare asks the agent's half whether a value is the one that is stored.
func (j *importJob) compare(ctx context.Context, s *share, v *variable, have vault.LabelInfo) (verdict, error) {
	if err := j.agentOf(ctx, s); err != nil || s.agent == nil {
		return exists, err
	}
	equal, err := s.agent.Same(ctx, v.label, []byte(v.value))
	switch {
	case errors.Is(err, vault.NotFound), errors.Is(err, vault.Forbidden), errors.Is(err, vault.Expired), errors.Is(err, vault.Revoked):
		return exists, nil // this key may not tell
	case err != nil:
		return exists, err
	case equal && have.Kind == v.kind:
		return same, nil
	}
	return changed, nil
}

// agentOf unlocks a vault with the key of a profile on this machine, if there
// is one that works.
func (j *importJob) agentOf(ctx context.Context, s *share) error {
	if s.agent != nil || s.profile != "" {
		return nil
	}
	all, err := j.app.profiles()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.ID != s.info.ID.String() || j.app.conf.profile != "" && j.app.conf.profile != p.name {
			continue
		}
		in, err := j.app.profileKey(p.name)
		if err != nil {
			continue
		}
		s.profile = p.name
		v, err := j.keeper.Unlock(ctx, in.key, vault.Source{Via: "cli"})
		if err == nil {
			s.agent = v
			return nil
		}
		if w := vault.Refuse(err).Word; w != vault.Revoked && w != vault.Expired && w != vault.Unauthorized {
			return err
		}
	}
	return nil
}

func (j *importJob) needAgent(ctx context.Context, s *share) error {
	if err := j.agentOf(ctx, s); err != nil {
		return err
	}
	if s.agent == nil {
		return failf(exitNotFound, "--shred reads every value back first, and no working key of %s is on this machine; nothing was stored", s.info.Name).
			hint("solekey import "+j.sources[0].name+" --identity "+s.info.Name, "solekey identity create OTHER")
	}
	if !s.agent.Grant().Scopes.Has(identity.Read) {
		return failf(exitRefused, "--shred reads every value back first, and the key of %s lacks the scope read; nothing was stored", s.info.Name)
	}
	for i := range j.plan {
		if v := &j.plan[i]; v.take && !s.agent.Grant().Covers(string(v.label)) {
			return failf(exitRefused, "--shred reads every value back first, and the key of %s is not for %s; nothing was stored", s.info.Name, v.label)
		}
	}
	return nil
}

// puts reports whether a taken variable is to be stored in s.
func (j *importJob) puts(s *share, v *variable) bool {
	if !v.take {
		return false
	}
	switch s.before[v.label] {
	case absent:
		return true
	case same:
		return false
	}
	return j.flags.replace
}

// store commits the entries of each identity, all or none.
func (j *importJob) store(ctx context.Context) error {
	for i, s := range j.shares {
		var es []vault.NewEntry
		for n := range j.plan {
			if v := &j.plan[n]; j.puts(s, v) {
				es = append(es, v.entry())
			}
		}
		if len(es) == 0 {
			continue
		}
		out, err := j.keeper.Import(ctx, s.info.ID, es, j.flags.replace)
		for _, e := range es {
			clear(e.Fields[0].Value)
		}
		if err != nil {
			if i > 0 {
				j.app.warn("stored in %s; not in %s", j.names(j.shares[:i]), j.names(j.shares[i:]))
			}
			return err
		}
		for _, o := range out {
			if o.Skipped { // somebody stored it since
				s.before[o.Label] = exists
				continue
			}
			s.version[o.Label] = o.Version
		}
	}
	return nil
}

func (v *variable) entry() vault.NewEntry {
	return vault.NewEntry{Label: v.label, Kind: v.kind, Fields: []vault.Field{{Name: "value", Value: []byte(v.value)}}, Hosts: v.hosts, Placement: v.place}
}

// inside reports whether the value of v is in the vault of every identity.
func (j *importJob) inside(v *variable) bool {
	if !v.take && !v.twin {
		return false
	}
	for _, s := range j.shares {
		if s.before[v.label] != same && s.version[v.label] == 0 {
			return false
		}
	}
	return true
}

func (j *importJob) names(ss []*share) string {
	var out []string
	for _, s := range ss {
		out = append(out, s.info.Name)
	}
	return strings.Join(out, ", ")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/internal/dotenv"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage"
	"github.com/solekey/solekey/vault/storage/bolt"
)

// Doctor looks at everything and goes on past what is broken. It repairs
// nothing: the one thing it changes, on demand, is the mark that a disk error
// left. To prove that the log takes a line it writes one.

func doctorCommand(a *app) *cobra.Command {
	var fix bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check the store, the profiles and this directory",
		Long: `Doctor checks the data directory, the database, every vault, the audit log,
the root key, the profiles of this machine, the environment, and the .env
files of the current directory. Each line is ok, warn or fail; with a fail it
exits with 8. It repairs nothing. --clear takes back the mark that stops a
store after a disk error, once the disk was checked.`,
		Example: `  solekey doctor
  solekey doctor --json | jq '.checks[] | select(.status == "fail")'`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd.Context(), fix) },
	}
	c.Flags().BoolVar(&fix, "clear", false, "let the store work again after a disk error")
	return c
}

// status is how a finding ends.
type status string

const (
	statusOK   status = "ok"
	statusWarn status = "warn"
	statusFail status = "fail"
)

// finding is one line of doctor. It never holds a value.
type finding struct {
	Status  status `json:"status"`
	Subject string `json:"subject"`
	Detail  string `json:"detail"`
	Try     string `json:"try,omitempty"`
}

// examination is one run of doctor.
type examination struct {
	app   *app
	found []finding
	ids   map[string]vault.Info // of the store, by ID; nil if they cannot be listed
	dir   string
}

func (x *examination) add(s status, subject, try, format string, args ...any) {
	x.found = append(x.found, finding{Status: s, Subject: subject, Detail: fmt.Sprintf(format, args...), Try: try})
}

func (x *examination) failed() bool {
	return slices.ContainsFunc(x.found, func(f finding) bool { return f.Status == statusFail })
}

func (a *app) doctor(ctx context.Context, fix bool) error {
	x := &examination{app: a}
	if err := x.store(ctx, fix); err != nil {
		return err
	}
	x.profiles()
	x.environment()
	x.variables()
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err := x.report(); err != nil {
		return err
	}
	if x.failed() {
		return reported{exit: exitFindings}
	}
	return nil
}

func (x *examination) report() error {
	a := x.app
	if a.conf.asJSON {
		return a.writeJSON(struct {
			OK     bool      `json:"ok"`
			Checks []finding `json:"checks"`
			Count  int       `json:"count"`
		}{!x.failed(), x.found, len(x.found)})
	}
	colours := map[status]string{statusOK: "32", statusWarn: "33", statusFail: "31"}
	for _, f := range x.found {
		if a.conf.quiet && f.Status == statusOK {
			continue
		}
		fmt.Fprintf(a.stdout, "%s  %-7s  %s\n", a.paint(a.stdout, colours[f.Status], fmt.Sprintf("%-4s", f.Status)), f.Subject, f.Detail)
		if f.Try != "" {
			fmt.Fprintf(a.stdout, "      try: %s\n", f.Try)
		}
	}
	return nil
}

// store examines the data directory and what is in it. Its error is for a
// command line that names no directory; everything else is a finding.
func (x *examination) store(ctx context.Context, fix bool) error {
	dir, err := x.app.storeDir()
	if err != nil {
		return err
	}
	x.dir = dir
	if !x.present() {
		return nil
	}
	x.modes()
	b, err := bolt.Open(dir, bolt.Options{})
	if err != nil {
		x.add(statusFail, "store", x.placeHint(err), "%s: %s", tilde(dir), trouble(err))
		return nil
	}
	if fix {
		x.clear(b)
	}
	ring, err := x.app.ring()
	if err != nil {
		_ = b.Close()
		return err
	}
	x.engine(ctx, b, ring)
	return nil
}

// present reports whether there is a whole store to look at.
func (x *examination) present() bool {
	again := initHint(x.app, x.dir)
	if _, err := os.Lstat(filepath.Join(x.dir, pendingName)); err == nil {
		x.add(statusFail, "store", again, "%s: the set-up was interrupted", tilde(x.dir))
		return false
	}
	info, err := os.Stat(x.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		x.add(statusFail, "store", again, "%s does not exist", tilde(x.dir))
		return false
	case err != nil:
		x.add(statusFail, "store", "", "%s: %s", tilde(x.dir), systemWords(err))
		return false
	case !info.IsDir():
		x.add(statusFail, "store", "solekey --home DIR doctor", "%s is not a directory", tilde(x.dir))
		return false
	}
	if _, err := os.Lstat(filepath.Join(x.dir, "vault.db")); errors.Is(err, fs.ErrNotExist) {
		if x.remains() {
			x.add(statusFail, "store", "restore the data directory from a copy", "%s: vault.db is missing, other files of a store are there", tilde(x.dir))
		} else {
			x.add(statusFail, "store", again, "no store in %s", tilde(x.dir))
		}
		return false
	}
	return true
}

// remains reports whether files of a store lie in a directory without its
// database.
func (x *examination) remains() bool {
	for _, name := range []string{"vault.cells", "audit.jsonl"} {
		if info, err := os.Lstat(filepath.Join(x.dir, name)); err == nil && info.Size() > 0 {
			return true
		}
	}
	return false
}

// modes looks at permissions before the engine does, which closes the
// directory and its files to others when it opens them.
func (x *examination) modes() {
	if runtime.GOOS == "windows" {
		return
	}
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		x.add(statusFail, "store", "chmod 700 "+x.dir, "%s cannot be read: %s", tilde(x.dir), systemWords(err))
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.IsDir() {
			continue
		}
		path := filepath.Join(x.dir, e.Name())
		switch perm := info.Mode().Perm(); {
		case info.Mode()&fs.ModeSymlink != 0:
			x.add(statusFail, "store", "", "%s is a symbolic link, which the store does not follow", tilde(path))
		case perm&0o077 != 0:
			x.add(statusWarn, "store", "chmod 600 "+path, "%s was open to others (mode %04o)", tilde(path), perm)
		case perm&0o600 != 0o600:
			x.add(statusFail, "store", "chmod 600 "+path, "%s is closed to its owner (mode %04o)", tilde(path), perm)
		}
	}
}

func (x *examination) placeHint(err error) string {
	if errors.Is(err, storage.ErrUnsupported) {
		return "solekey --home DIR init     (on a local disk)"
	}
	return ""
}

func (x *examination) clear(b *bolt.Store) {
	if err := b.ClearFailed(); err != nil {
		x.add(statusFail, "disk", "", "the mark could not be taken back: %s", trouble(err))
		return
	}
	x.add(statusOK, "disk", "", "no failure mark stands")
}

// engine examines an open store, from its files up to its log, and closes it.
func (x *examination) engine(ctx context.Context, b *bolt.Store, ring *keyring.Ring) {
	var from keyring.Source
	k := vault.Open(b, sourceOf(ring, &from), vault.Options{Now: x.app.now})
	defer k.Close()
	d := b.Describe()
	for _, w := range d.Warnings {
		x.add(statusWarn, "store", "", "%s", w)
	}
	if err := b.Check(ctx); err != nil {
		for _, e := range parts(err) {
			x.add(statusFail, "store", repairHint(e), "%s", trouble(e))
		}
	}
	x.health(ctx, k)
	x.identities(ctx, k)
	x.summarize(d, from)
}

// sourceOf finds root text as every command does, and notes where it rests.
func sourceOf(ring *keyring.Ring, from *keyring.Source) vault.RootSource {
	return func(ctx context.Context, store identity.ID) (vault.Root, error) {
		root, err := rootFrom(ring)(ctx, store)
		if err == nil {
			_, *from, _ = ring.Get(keyring.Root, store.String())
		}
		return root, err
	}
}

// health takes over what the vault's own examination finds wrong.
func (x *examination) health(ctx context.Context, k *vault.Keeper) {
	checks, err := k.Health(ctx)
	for _, c := range checks {
		if c.OK {
			continue
		}
		subject, detail := c.Subject, c.Detail
		if id, ok := strings.CutPrefix(subject, "identity "); ok {
			subject, detail = "vault", id+" "+detail
		}
		x.add(statusFail, subject, c.Try, "%s", detail)
	}
	if err != nil {
		x.unreachable(err)
	}
}

// unreachable says why the vaults could not be examined, unless the files
// have told already.
func (x *examination) unreachable(err error) {
	if errors.Is(err, vault.ErrNoStore) {
		x.add(statusFail, "store", initHint(x.app, x.dir), "the database holds no store: its set-up was interrupted")
		return
	}
	if f, ok := errors.AsType[*failure](err); ok {
		x.add(statusFail, "root", "", "%s", f.message)
		return
	}
	if errors.Is(err, keyring.ErrNone) {
		x.add(statusFail, "root", "", "%s", errNoRoot.message)
		return
	}
	said := trouble(err)
	if !slices.ContainsFunc(x.found, func(f finding) bool { return f.Status == statusFail && f.Detail == said }) {
		x.add(statusFail, "vaults", repairHint(err), "%s", said)
	}
}

// identities lists who is in the store, for the checks of profiles and keys.
func (x *examination) identities(ctx context.Context, k *vault.Keeper) {
	all, err := k.Identities(ctx)
	if err != nil {
		return // health has said why
	}
	x.ids = make(map[string]vault.Info, len(all))
	for _, i := range all {
		x.ids[i.ID.String()] = i
	}
}

// summarize says what the store is and where its secrets rest.
func (x *examination) summarize(d bolt.Description, from keyring.Source) {
	if !x.failed() {
		x.add(statusOK, "store", "", "%s; audit verifies", x.words(d))
	}
	if x.ids != nil { // the root key opened them
		x.add(statusOK, "root", "", "root key %s", whereWords(from))
	}
	if d.Erasure == storage.InPlace {
		x.add(statusOK, "shred", "", "overwrites keys in place on %s; remapping inside an SSD and snapshots below cannot be seen", d.FileSystem)
	} else {
		x.add(statusWarn, "shred", "", "best effort: %s may keep older copies of an overwritten key", d.FileSystem)
	}
}

// words are mode, file system, identities and size of a sound store.
func (x *examination) words(d bolt.Description) string {
	active := 0
	for _, i := range x.ids {
		if i.Status == identity.Active {
			active++
		}
	}
	var size int64
	for _, n := range d.Sizes {
		size += n
	}
	mode := ""
	if runtime.GOOS != "windows" {
		mode = "0700, "
	}
	return fmt.Sprintf("%s%s, %s, %.1f MiB", mode, d.FileSystem, identities(active), float64(size)/(1<<20))
}

func identities(n int) string {
	if n == 1 {
		return "1 identity"
	}
	return fmt.Sprintf("%d identities", n)
}

// trouble is what an error of the engine says. Its texts hold no byte of a
// key or value.
func trouble(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.message
	}
	if errors.Is(err, fs.ErrPermission) {
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			return tilde(p.Path) + ": " + p.Err.Error()
		}
	}
	for _, s := range []error{
		storage.ErrUnavailable, storage.ErrUnknown, storage.ErrFull, storage.ErrDamaged, storage.ErrNoCell,
		storage.ErrErased, storage.ErrUnsupported, storage.ErrClosed, fs.ErrNotExist, context.DeadlineExceeded,
	} {
		if errors.Is(err, s) {
			return err.Error()
		}
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return tilde(p.Path) + ": " + p.Err.Error()
	}
	return strings.TrimSuffix(vault.Refuse(err).Message, ".")
}

// parts takes joined errors apart.
func parts(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// repairHint is the next step for an error of the engine.
func repairHint(err error) string {
	switch {
	case errors.Is(err, storage.ErrFull):
		return "free space on the disk"
	case strings.Contains(err.Error(), "--clear"):
		return "solekey doctor --clear     (after a disk check and a reboot)"
	case errors.Is(err, storage.ErrDamaged):
		return "copy the data directory elsewhere, then restore it from an older copy"
	case errors.Is(err, fs.ErrPermission):
		return "chown and chmod the data directory back to this account"
	}
	return "solekey doctor     (again)"
}

// profiles looks at every profile of this machine.
func (x *examination) profiles() {
	all, err := x.app.profiles()
	if err != nil {
		x.add(statusWarn, "profile", "", "profiles cannot be listed: %s", trouble(err))
		return
	}
	good := 0
	for _, p := range all {
		if x.profile(p) {
			good++
		}
	}
	if good > 0 {
		x.add(statusOK, "profile", "", "%s with a key and an identity", count(good, "profile"))
	}
}

// profile reports whether a profile leads to a key and an identity.
func (x *examination) profile(p profile) bool {
	if _, err := x.app.profileKey(p.name); err != nil {
		x.add(statusFail, "profile", "solekey profile rm "+p.name, "%s: %s", p.name, explain(err).message)
		return false
	}
	if _, err := os.Lstat(filepath.Join(p.Store, "vault.db")); err != nil {
		x.add(statusFail, "profile", "solekey profile rm "+p.name, "%s leads to a store that is not there: %s", p.name, tilde(p.Store))
		return false
	}
	if p.Store != x.dir || x.ids == nil {
		return true // another store, or one that cannot be read
	}
	info, ok := x.ids[p.ID]
	switch {
	case !ok:
		x.add(statusFail, "profile", "solekey profile rm "+p.name, "%s leads to an identity that is not in the store", p.name)
	case info.Damaged:
		x.add(statusFail, "profile", "", "%s leads to a damaged vault", p.name)
	case info.Status != identity.Active:
		x.add(statusWarn, "profile", "solekey profile rm "+p.name, "%s leads to an identity that was revoked", p.name)
	default:
		return true
	}
	return false
}

// environment looks for a key that lies around in the environment.
func (x *examination) environment() {
	c := &x.app.conf
	if c.envKey == "" {
		return
	}
	const try = "unset " + envAPIKey
	key, err := identity.ParseKey(c.envKey)
	if err != nil {
		x.add(statusWarn, "env", try, "%s is set and is no key", envAPIKey)
		return
	}
	if x.ids != nil {
		if why := x.stale(key); why != "" {
			x.add(statusWarn, "env", try, "%s holds %s", envAPIKey, why)
			return
		}
	}
	x.add(statusWarn, "env", try+"     (and use a profile)", "%s is set: every program that is started from here can read it", envAPIKey)
}

// stale says why a key opens nothing here, or "".
func (x *examination) stale(key identity.Key) string {
	info, ok := x.ids[key.Identity().String()]
	if !ok {
		return "a key of another store"
	}
	if info.Status != identity.Active {
		return "a key of an identity that was revoked"
	}
	for _, s := range info.Slots {
		if s.ID != key.Slot() {
			continue
		}
		switch end := s.Grant.Expires; {
		case s.Closed:
			return "a key that was revoked"
		case !end.IsZero() && !x.app.now().Before(end):
			return "a key that has expired"
		}
		return ""
	}
	return "a key that is not known"
}

// variables looks for .env files with secrets in the current directory.
func (x *examination) variables() {
	files, err := filepath.Glob(".env*")
	if err != nil {
		return
	}
	for _, name := range files {
		if isTemplate(name) {
			continue
		}
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() || info.Size() > dotenv.MaxSize {
			continue
		}
		if found := secretsIn(name); len(found) > 0 {
			x.add(statusWarn, "env", "solekey import "+name+" --dry-run", "%s holds %s: %s", name, count(len(found), "secret"), some(found, 5))
		}
	}
}

// isTemplate reports whether a file shows which variables there are, without
// their values.
func isTemplate(name string) bool {
	for _, end := range []string{".example", ".sample", ".template", ".dist", ".defaults"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// secretsIn names the variables of a file that hold secrets. A file that
// cannot be read or parsed holds none that we know.
func secretsIn(path string) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	file, err := dotenv.Parse(f)
	if err != nil {
		return nil
	}
	found := make(map[string]bool)
	for _, e := range file.Entries() {
		if catalog.Guess(e.Name, e.Value, nil).Action == catalog.Import && len(e.Refers) == 0 && !e.Command {
			found[brief(e.Name)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/catalog"
	"github.com/solekey/solekey/internal/dotenv"
	"github.com/solekey/solekey/vault"
)

// Doctor looks at everything and goes on past what is broken. It changes
// nothing unless it is told to: with --clear the mark that a disk error left,
// with --repair the store, by making another one. To prove that the log takes
// a line it writes one.

func doctorCommand(a *app) *cobra.Command {
	var fix bool
	var f repairFlags
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check the store, the profiles and this directory",
		Long: `Doctor checks the data directory, the database, every vault, the audit log,
the root key, the profiles of this machine, the environment, and the .env
files of the current directory. Each line is ok, warn or fail; with a fail it
exits with 8. It changes nothing. --clear takes back the mark that stops a
store after a disk error, once the disk was checked.

--repair BACKUP makes a whole store out of a damaged one and a backup of it:
every vault that opens as it is, every other one as of the backup, and closed
whatever the log says was closed since. It shows what it would do and asks.
The damaged store is not touched but renamed beside the repaired one, or with
--into left where it is. The backup opens with the root key and the shred keys
of this machine; with the recovery key shred keys that are lost come back too.`,
		Example: `  solekey doctor
  solekey doctor --json | jq '.checks[] | select(.status == "fail")'
  solekey doctor --repair /mnt/nas/solekey-2026-11-23.skb`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(fix); err != nil {
				return err
			}
			if f.backup != "" {
				return a.repair(cmd.Context(), f)
			}
			return a.doctor(cmd.Context(), fix)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&fix, "clear", false, "let the store work again after a disk error")
	fl.StringVar(&f.backup, "repair", "", "repair the store with this `BACKUP`")
	fl.StringVar(&f.into, "into", "", "build the repaired store in this `DIR`, and leave the damaged one alone")
	f.recovery.declare(fl)
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

	cause string // of an error of the engine, as every file tells it
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
	if remains(p.Store) || halfSwapped(p.Store) { // its key opens what is restored
		x.add(statusFail, "profile", "solekey doctor --home "+p.Store, "%s leads to a store without its database: %s", p.name, tilde(p.Store))
		return false
	}
	if _, err := os.Lstat(filepath.Join(p.Store, "vault.db")); err != nil {
		x.add(statusFail, "profile", "solekey profile rm "+p.name+"     (if that store is gone for good: the key opens a backup of it)", "%s leads to a store that is not there: %s", p.name, tilde(p.Store))
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
		x.add(statusFail, "profile", vault.TryRepair, "%s leads to a damaged vault", p.name)
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
	if c.envKeyFile != "" {
		if _, err := keyFile(c.envKeyFile, envAPIKeyFile); err != nil {
			x.add(statusWarn, "env", "unset "+envAPIKeyFile, "%s", explain(err).message)
		}
	}
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/internal/keyring"
)

func profileCommand(a *app) *cobra.Command {
	return group("profile", "List, show, add and remove the profiles of this machine",
		"  solekey profile list\n  solekey profile add ci --remote https://vault.example.com\n  solekey profile rm old-bot",
		profileList(a), profileShow(a), profileAdd(a), profileRm(a))
}

// profileRow is one profile in JSON.
type profileRow struct {
	Profile  string `json:"profile"`
	Identity string `json:"identity,omitempty"` // not known of a remote one
	ID       string `json:"id"`
	Store    string `json:"store,omitempty"` // of a local one
	URL      string `json:"url,omitempty"`   // of a remote one
	Key      string `json:"key"`             // keyring, file, missing or unusable
	KeyID    string `json:"key_id,omitempty"`
	Problem  string `json:"problem,omitempty"`
}

func (a *app) profileRow(p profile) profileRow {
	r := profileRow{Profile: p.name, Identity: p.Identity, ID: p.ID, Store: p.Store, URL: p.URL}
	in, err := a.keyOf(p)
	switch f, _ := errors.AsType[*failure](err); {
	case err == nil:
		r.Key, r.KeyID = placeOf(in.src), in.key.Slot().String()
	case f != nil && f.exit == exitNotFound:
		r.Key = "missing"
	default:
		r.Key, r.Problem = "unusable", explain(err).message
	}
	if _, err := os.Lstat(p.Store); !p.remote() && err != nil && r.Problem == "" {
		r.Problem = "the store is gone"
	}
	return r
}

// where is where the vault of a profile is.
func (r profileRow) where() string {
	if r.URL != "" {
		return r.URL
	}
	return tilde(r.Store)
}

func profileList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the profiles of this machine", Example: "  solekey profile list",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.listProfiles() },
	}
}

func (a *app) listProfiles() error {
	all, err := a.allProfiles()
	if err != nil {
		return err
	}
	rows := make([]profileRow, 0, len(all))
	for _, p := range all {
		rows = append(rows, a.profileRow(p))
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Profiles []profileRow `json:"profiles"`
			Count    int          `json:"count"`
		}{rows, len(rows)})
	}
	if len(rows) == 0 {
		a.say("no profile yet; next: solekey identity create NAME, or solekey profile add NAME --remote URL")
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{r.Profile, dash(r.Identity), dash(r.KeyID), r.Key, r.where(), r.Problem})
	}
	a.table([]string{"PROFILE", "IDENTITY", "KEY", "KEPT IN", "STORE", ""}, cells)
	return nil
}

func profileShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one profile, never its key", Example: "  solekey profile show claude-code",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeProfiles,
		RunE: func(_ *cobra.Command, args []string) error { return a.showProfile(args[0]) },
	}
}

func (a *app) showProfile(name string) error {
	p, err := a.anyProfile(name)
	if err != nil {
		return missingProfile(name, err)
	}
	r := a.profileRow(p)
	if a.conf.asJSON {
		return a.writeJSON(r)
	}
	place := "store"
	if p.remote() {
		place = "endpoint"
	}
	fmt.Fprintf(a.stdout, "profile %s   identity %s   %s %s   key %s   kept in %s\n", r.Profile, dash(r.Identity), place, r.where(), dash(r.KeyID), r.Key)
	if r.Problem != "" {
		a.warn("%s", r.Problem)
	}
	a.say("client: %s", clientSnippet(name))
	return nil
}

func profileRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Remove a profile and its key from this machine",
		Long: `Remove a profile and its key from this machine. The identity and its vault stay;
if this was the only copy of the key, only the recovery key opens it again.`,
		Example: "  solekey profile rm old-bot",
		Args:    usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeProfiles,
		RunE: func(cmd *cobra.Command, args []string) error { return a.rmProfile(cmd.Context(), args[0]) },
	}
}

func (a *app) rmProfile(ctx context.Context, name string) error {
	if err := checkProfileName(name); err != nil {
		return err
	}
	path, err := a.conf.configPath(profileDir, name+profileExt)
	if err != nil {
		return err
	}
	ring, err := a.ring()
	if err != nil {
		return err
	}
	_, fileErr := os.Lstat(path)
	_, _, keyErr := ring.Get(keyring.Profile, name)
	if fileErr != nil && errors.Is(keyErr, keyring.ErrNone) {
		return missingProfile(name, fs.ErrNotExist)
	}
	if err := a.confirm(ctx, fmt.Sprintf("Remove profile %s and its key from this machine?", name)); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing profile: %w", err)
	}
	if err := ring.Delete(keyring.Profile, name); err != nil && !errors.Is(err, keyring.ErrNone) {
		return fmt.Errorf("removing the key: %w", err)
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Profile string `json:"profile"`
			Removed bool   `json:"removed"`
		}{name, true})
	}
	a.row("profile", "removed", name)
	return nil
}

package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/internal/keyring"
	"github.com/solekey/solekey/vault"
)

func receiptCommand(a *app) *cobra.Command {
	return group("receipt", "List, show and verify the receipts of revocations",
		"  solekey receipt list\n  solekey receipt show 2026-11-23-old-bot\n  solekey receipt verify 2026-11-23-old-bot",
		receiptList(a), receiptShow(a), receiptVerify(a))
}

// maxReceipt bounds the file of a receipt: every label of the largest vault.
const maxReceipt = 4 << 20

// keptReceipt is a receipt with the place it was read from.
type keptReceipt struct {
	path string
	rec  vault.Receipt
	err  error
}

func (r keptReceipt) name() string { return strings.TrimSuffix(filepath.Base(r.path), ".json") }

func readReceipt(path string) keptReceipt {
	out := keptReceipt{path: path}
	b, err := keyring.ReadOwn(path, maxReceipt)
	if err != nil {
		out.err = err
		return out
	}
	out.rec, out.err = vault.ParseReceipt(b)
	return out
}

// receipt reads the receipt that arg names: a file, or one of the store as
// `receipt list` names it.
func (a *app) receipt(arg string) (keptReceipt, error) {
	r := readReceipt(arg)
	if errors.Is(r.err, fs.ErrNotExist) && filepath.Base(arg) == arg {
		dir, err := a.storeDir()
		if err != nil {
			return r, err
		}
		r = readReceipt(filepath.Join(dir, receiptDir, strings.TrimSuffix(arg, ".json")+".json"))
	}
	switch {
	case errors.Is(r.err, fs.ErrNotExist):
		return r, failf(exitNotFound, "no receipt of this name").hint("solekey receipt list")
	case errors.Is(r.err, vault.ErrMalformedReceipt):
		return r, failf(exitFindings, "%s is not a receipt as it is written: it was changed, or is something else", tilde(r.path))
	case r.err != nil:
		return r, failf(exitUsage, "%v", r.err) // names a path and what is wrong with it
	}
	return r, nil
}

func receiptList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the receipts of this store", Example: "  solekey receipt list",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listReceipts(cmd.Context()) },
	}
}

// filesIn returns the paths in dir whose names begin and end so, sorted. The
// directory may be missing. A pattern would take characters of its path for
// its own.
func filesIn(dir, prefix, suffix string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range all {
		if name := e.Name(); strings.HasPrefix(name, prefix) && strings.HasSuffix(name, suffix) {
			out = append(out, filepath.Join(dir, name))
		}
	}
	return out, nil
}

// keptRow is one receipt in JSON.
type keptRow struct {
	Receipt  string `json:"receipt"`
	Identity string `json:"identity,omitempty"`
	Action   string `json:"action,omitempty"`
	At       string `json:"effective_at,omitempty"`
	Revealed int    `json:"revealed"`
	State    string `json:"state"` // signed, forged, unreadable, or unchecked without the root key
}

func (a *app) listReceipts(ctx context.Context) error {
	dir, err := a.storeDir()
	if err != nil {
		return err
	}
	files, err := filesIn(filepath.Join(dir, receiptDir), "", ".json")
	if err != nil {
		return err
	}
	pub, pubErr := a.auditKey(ctx, "")
	rows := make([]keptRow, 0, len(files))
	for _, path := range files {
		f := readReceipt(path)
		row := keptRow{Receipt: f.name(), State: "unreadable"}
		if f.err == nil {
			row.Identity, row.Action, row.At, row.Revealed = f.rec.Identity.Name, f.rec.Action, at(f.rec.EffectiveAt), len(f.rec.Revealed)
			row.State = "signed"
			if pubErr != nil {
				row.State = "unchecked"
			} else if f.rec.Verify(pub) != nil {
				row.State = "forged"
			}
		}
		rows = append(rows, row)
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Receipts []keptRow `json:"receipts"`
			Count    int       `json:"count"`
		}{rows, len(rows)})
	}
	if len(rows) == 0 {
		a.say("no receipt yet")
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{r.Receipt, dash(r.Identity), dash(r.Action), dash(r.At), fmt.Sprint(r.Revealed), r.State})
	}
	a.table([]string{"RECEIPT", "IDENTITY", "ACTION", "EFFECTIVE", ">TO ROTATE", "STATE"}, cells)
	return nil
}

func receiptShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show FILE", Short: "Show what closed keys were given",
		Long: `Show a receipt: what its keys were given, and where that is rotated. FILE is a
path, or a name that "receipt list" shows. It names labels: treat it as
internal. "receipt verify" also counts again.`,
		Example: "  solekey receipt show 2026-11-23-old-bot",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.showReceipt(cmd.Context(), args[0]) },
	}
}

func (a *app) showReceipt(ctx context.Context, arg string) error {
	f, err := a.receipt(arg)
	if err != nil {
		return err
	}
	if a.conf.asJSON {
		return a.writeJSON(f.rec)
	}
	rec := f.rec
	a.row("receipt", "", fmt.Sprintf("%s   %s of %s   %s", f.name(), rec.Action, dash(rec.Identity.Name), rec.Identity.ID))
	if rec.Reason != "" {
		a.row("reason", "", fmt.Sprintf("%q", rec.Reason))
	}
	if rec.Heir != "" {
		a.row("values", "", "moved to identity "+rec.Heir)
	}
	if rec.Recoverable {
		a.row("recovery", "", "the recovery key can bring it back: solekey identity recover "+rec.Identity.Name)
	}
	shown := vault.Info{Name: rec.Identity.Name}
	for _, k := range rec.Keys {
		var id identity.SlotID
		if b, err := hex.DecodeString(k); err == nil {
			copy(id[:], b)
			shown.Slots = append(shown.Slots, vault.SlotInfo{ID: id})
		}
	}
	a.printSealed(rec, shown, f.path, a.signature(ctx, rec))
	return nil
}

// signature says what is known of the signature of a receipt.
func (a *app) signature(ctx context.Context, rec vault.Receipt) string {
	pub, err := a.auditKey(ctx, "")
	switch {
	case err != nil:
		return "signature not checked"
	case rec.Verify(pub) != nil:
		return "NOT SIGNED by this store, or changed"
	}
	return "signed"
}

func receiptVerify(a *app) *cobra.Command {
	pub := ""
	c := &cobra.Command{
		Use: "verify FILE", Short: "Check the signature of a receipt, and count again",
		Long: `Check that a receipt is as it was signed, by the audit key of this store, and
that the audit log still counts the same. With --pub the key is given and no
store is needed: the check is offline, and nothing is counted. The key must
come from elsewhere than the receipt; this command prints it.`,
		Example: `  solekey receipt verify 2026-11-23-old-bot
  solekey receipt verify receipt.json --pub f9R8RmGhusG...`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyReceipt(cmd.Context(), args[0], pub) },
	}
	c.Flags().StringVar(&pub, "pub", "", "audit public `KEY` of the store, base64 or hex")
	return c
}

// auditKey returns the key that signs receipts: what --pub says, else that of
// the store.
func (a *app) auditKey(ctx context.Context, given string) ([]byte, error) {
	if given == "" {
		k, err := a.owner()
		if err != nil {
			return nil, err
		}
		defer k.Close()
		return k.AuditPublic(ctx)
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if b, err := decode(given); err == nil && len(b) == 32 {
			return b, nil
		}
	}
	return nil, failf(exitUsage, "--pub takes 32 bytes in base64 or hex")
}

func (a *app) verifyReceipt(ctx context.Context, arg, given string) error {
	f, err := a.receipt(arg)
	if err != nil {
		return err
	}
	pub, err := a.auditKey(ctx, given)
	if err != nil {
		return err
	}
	if err := f.rec.Verify(pub); err != nil {
		return failf(exitFindings, "%s: %v: it was changed, or another store signed it", f.name(), err)
	}
	counted := "not counted again"
	if given == "" {
		if err := a.recount(ctx, f.rec); err != nil {
			return err
		}
		counted = "counted again"
	}
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Receipt  string `json:"receipt"`
			Key      string `json:"key"`
			Signed   bool   `json:"signed"`
			Counted  bool   `json:"counted"`
			Complete bool   `json:"complete"`
		}{f.name(), base64.StdEncoding.EncodeToString(pub), true, given == "", f.rec.Audit.Complete})
	}
	a.row("receipt", "signed", fmt.Sprintf("%s  %s; key %s", f.name(), counted, base64.StdEncoding.EncodeToString(pub)))
	if !f.rec.Audit.Complete {
		a.warn("the audit log was not complete when this receipt was made, so neither is its list")
	}
	return nil
}

func (a *app) recount(ctx context.Context, rec vault.Receipt) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	err = k.Recount(ctx, rec)
	if errors.Is(err, vault.ErrUncountable) {
		return failf(exitUnavailable, "the signature fits, but %v", err).hint("put the files back into the data directory", "solekey receipt verify FILE --pub KEY     (the signature alone)")
	}
	if errors.Is(err, vault.ErrReplaced) {
		return failf(exitUnavailable, "the signature fits, but %v", err).hint("solekey receipt verify FILE --pub KEY     (the signature alone)")
	}
	if errors.Is(err, vault.ErrMiscounted) {
		return failf(exitFindings, "the signature fits, but %v", err).hint("solekey audit verify")
	}
	return err
}

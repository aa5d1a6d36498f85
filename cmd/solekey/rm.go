package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

func rmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm LABEL..",
		Short: "Remove labels from a vault",
		Long: `Remove labels with every version of their values: all of them, or none. A value
that an agent has read goes on working at its provider.`,
		Example: `  solekey rm OPENAI_API_KEY --identity claude-code
  solekey rm deploy/token deploy/key --identity '*' --yes`,
		Args: usageArgs(cobra.MinimumNArgs(1)), ValidArgsFunction: a.completeLabels,
		RunE: func(cmd *cobra.Command, args []string) error { return a.rm(cmd.Context(), args) },
	}
}

// removedRow is one removed label in JSON.
type removedRow struct {
	Identity string `json:"identity"`
	Label    string `json:"label"`
	Versions uint32 `json:"versions"`
	Reads    int    `json:"reads"`
}

func (a *app) rm(ctx context.Context, args []string) error {
	labels, err := parseLabels(args)
	if err != nil {
		return err
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	targets, err := a.several(ctx, k)
	if err != nil {
		return err
	}
	if err := a.confirm(ctx, fmt.Sprintf("Remove %s from %s?", count(len(labels), "label"), whose(targets))); err != nil {
		return err
	}
	var rows []removedRow
	var errs []error
	for _, i := range targets {
		out, err := a.removeFrom(ctx, k, i, labels)
		if err != nil && len(targets) > 1 {
			a.warn("%s: %s", i.Name, explain(err).message)
		}
		rows, errs = append(rows, out...), append(errs, err)
	}
	if a.conf.asJSON && len(rows) > 0 {
		if err := a.writeJSON(struct {
			Removed []removedRow `json:"removed"`
			Count   int          `json:"count"`
		}{rows, len(rows)}); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func whose(targets []vault.Info) string {
	if len(targets) == 1 {
		return targets[0].Name
	}
	return count(len(targets), "vault")
}

// parseLabels drops doubles.
func parseLabels(args []string) ([]vault.Label, error) {
	var out []vault.Label
	seen := map[vault.Label]bool{}
	for _, s := range args {
		l, err := vault.ParseLabel(s)
		if err != nil {
			return nil, failf(exitUsage, "not a label: %v", vault.ErrMalformedLabel)
		}
		if !seen[l] {
			seen[l] = true
			out = append(out, l)
		}
	}
	return out, nil
}

func (a *app) removeFrom(ctx context.Context, k *vault.Keeper, i vault.Info, labels []vault.Label) ([]removedRow, error) {
	use, err := k.Usage(ctx, i.ID)
	if err != nil {
		return nil, err
	}
	gone, err := k.Remove(ctx, i.ID, labels...)
	if err != nil {
		return nil, err
	}
	var rows []removedRow
	for _, l := range gone {
		r := removedRow{Identity: i.Name, Label: string(l.Label), Versions: l.Version, Reads: use.Labels[l.Label].Reads}
		rest := fmt.Sprintf("%s (%s) from %s", r.Label, count(int(r.Versions), "version"), r.Identity)
		if r.Reads > 0 {
			times := "once"
			if r.Reads > 1 {
				times = fmt.Sprintf("%d times", r.Reads)
			}
			rest += fmt.Sprintf("; it was read %s: removing it here does not disable it at the provider", times)
		}
		a.row("removed", "", rest)
		rows = append(rows, r)
	}
	return rows, nil
}

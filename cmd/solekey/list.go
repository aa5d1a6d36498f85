package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

func listCommand(a *app) *cobra.Command {
	var expiring time.Duration
	c := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the labels of a vault, never its values",
		Example: `  solekey list --identity claude-code
  solekey list deploy/ --expiring 7d`,
		Args: usageArgs(cobra.MaximumNArgs(1)), ValidArgsFunction: a.completeLabels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.list(cmd.Context(), strings.Join(args, ""), expiring)
		},
	}
	c.Flags().Var(duration{&expiring}, "expiring", "only labels that end within this time, or have ended")
	return c
}

// labelRow is one label in JSON.
type labelRow struct {
	Label     string   `json:"label"`
	Kind      string   `json:"kind"`
	Exposure  string   `json:"exposure"`
	HasTOTP   bool     `json:"has_totp"`
	Version   uint32   `json:"version"`
	Fields    []string `json:"fields,omitempty"`
	Hosts     []string `json:"hosts,omitempty"`
	Placement string   `json:"placement,omitempty"`
	Tags      []string `json:"tags,omitempty"`
	Created   string   `json:"created_at"`
	Updated   string   `json:"updated_at"`
	Expires   string   `json:"expires_at,omitempty"`
	LastUsed  string   `json:"last_used_at,omitempty"`
	Reads     int      `json:"reads"`
	Codes     int      `json:"codes"`
}

func (a *app) list(ctx context.Context, prefix string, expiring time.Duration) error {
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	i, err := a.one(ctx, k)
	if err != nil {
		return err
	}
	labels, err := k.Labels(ctx, i.ID)
	if err != nil {
		return err
	}
	use, err := k.Usage(ctx, i.ID)
	if err != nil {
		return err
	}
	rows := make([]labelRow, 0, len(labels))
	for _, l := range labels {
		ends := !l.Expires.IsZero() && l.Expires.Before(a.now().Add(expiring))
		if strings.HasPrefix(string(l.Label), prefix) && (expiring == 0 || ends) {
			rows = append(rows, newLabelRow(l, use.Labels[l.Label]))
		}
	}
	return a.printLabels(i, rows)
}

func newLabelRow(l vault.LabelInfo, u vault.Used) labelRow {
	return labelRow{
		Label: string(l.Label), Kind: l.Kind.String(), Exposure: l.Exposure.String(), HasTOTP: l.HasTOTP, Version: l.Version,
		Fields: l.Fields, Hosts: l.Hosts, Placement: l.Placement, Tags: l.Tags, Created: at(l.Created), Updated: at(l.Updated),
		Expires: at(l.Expires), LastUsed: at(u.Last), Reads: u.Reads, Codes: u.Codes,
	}
}

func (a *app) printLabels(i vault.Info, rows []labelRow) error {
	if a.conf.asJSON {
		return a.writeJSON(struct {
			Identity string     `json:"identity"`
			Labels   []labelRow `json:"labels"`
			Count    int        `json:"count"`
		}{i.Name, rows, len(rows)})
	}
	if len(rows) == 0 {
		a.say("no label; next: solekey put LABEL --identity %s", i.Name)
		return nil
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{r.Label, r.Kind, r.Exposure, fmt.Sprint(r.Version), dash(strings.Join(r.Hosts, ",")), dayOf(r.Expires), dayOf(r.LastUsed)})
	}
	a.table([]string{"LABEL", "KIND", "EXPOSURE", ">V", "HOST", "EXPIRES", "LAST USED"}, cells)
	return nil
}

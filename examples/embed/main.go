// Embed shows the library without the command line: a store in a directory,
// one identity with a vault, a secret and a seed of one-time codes. The owner
// puts them in and cannot read them back; the key of the identity can.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/solekey/solekey/identity"
	"github.com/solekey/solekey/vault"
	"github.com/solekey/solekey/vault/storage/bolt"
)

func main() {
	dir, err := os.MkdirTemp("", "solekey-embed-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = run(context.Background(), dir, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

// run makes a store in dir, fills a vault and reads it as its agent.
func run(ctx context.Context, dir string, out io.Writer) error {
	keeper, err := newStore(ctx, dir)
	if err != nil {
		return err
	}
	defer keeper.Close()

	// The owner's half: an identity, its key, and what goes into its vault.
	key, err := keeper.Create(ctx, vault.NewIdentity{Name: "weather-agent"})
	if err != nil {
		return fmt.Errorf("creating the identity: %w", err)
	}
	if err := fill(ctx, keeper, key.Identity()); err != nil {
		return err
	}

	// The agent's half: only the key opens the vault.
	v, err := keeper.Unlock(ctx, key, vault.Source{Via: "embed"})
	if err != nil {
		return fmt.Errorf("unlocking: %w", err)
	}
	return read(ctx, v, out)
}

// newStore makes a store. The text of its root must rest somewhere else than
// the store does, such as the keyring of the system; here it stays in memory.
func newStore(ctx context.Context, dir string) (*vault.Keeper, error) {
	backend, err := bolt.Create(dir, bolt.Options{})
	if err != nil {
		return nil, fmt.Errorf("creating the store: %w", err)
	}
	root := vault.NewRoot()
	// Without NoRecovery, Init returns the recovery key, to be shown once.
	if _, err := vault.Init(ctx, backend, root, vault.InitOptions{NoRecovery: true}); err != nil {
		return nil, fmt.Errorf("initialising the store: %w", err)
	}
	source := func(context.Context, identity.ID) (vault.Root, error) { return root, nil }
	return vault.Open(backend, source, vault.Options{}), nil
}

func fill(ctx context.Context, keeper *vault.Keeper, id identity.ID) error {
	entries := []vault.NewEntry{
		{
			Label:  "WEATHER_API_KEY",
			Fields: []vault.Field{{Name: "value", Value: []byte("EXAMPLE-not-a-real-key")}},
			Hosts:  []string{"api.weather.example"}, Placement: "header:X-Api-Key",
		},
		{
			Label: "weather/login", Kind: vault.KindTOTP, // a seed never leaves, its codes do
			Fields: []vault.Field{{Name: "value", Value: []byte("otpauth://totp/Weather:agent?secret=JBSWY3DPEHPK3PXP&issuer=Weather")}},
		},
	}
	if _, err := keeper.Import(ctx, id, entries, false); err != nil {
		return fmt.Errorf("storing the entries: %w", err)
	}
	// The same for one entry; an entry that exists gets one more version.
	_, err := keeper.Put(ctx, id, vault.NewEntry{
		Label: "WEATHER_REGION_TOKEN", Expires: time.Now().AddDate(0, 3, 0),
		Fields: []vault.Field{{Name: "value", Value: []byte("EXAMPLE-not-a-real-token")}},
	})
	if err != nil {
		return fmt.Errorf("storing an entry: %w", err)
	}
	return nil
}

func read(ctx context.Context, v *vault.Vault, out io.Writer) error {
	labels, err := v.Labels(ctx, "")
	if err != nil {
		return fmt.Errorf("listing: %w", err)
	}
	for _, l := range labels {
		fmt.Fprintf(out, "%-21s %-7s %s\n", l.Label, l.Kind, l.Exposure)
	}
	secret, err := v.Get(ctx, "WEATHER_API_KEY", "")
	if err != nil {
		return fmt.Errorf("reading: %w", err)
	}
	fmt.Fprintln(out, "printed: ", secret) // whatever prints it, [redacted]
	fmt.Fprintln(out, "revealed:", secret.Reveal())
	code, err := v.Code(ctx, "weather/login", 5*time.Second)
	if err != nil {
		return fmt.Errorf("making a code: %w", err)
	}
	fmt.Fprintf(out, "code:     %d digits\n", len(code.Digits))
	_, err = v.Get(ctx, "weather/login", "")
	fmt.Fprintln(out, "seed:    ", err)
	_, err = v.Get(ctx, "SOMEBODY_ELSES_KEY", "")
	fmt.Fprintln(out, "other:   ", err)
	return nil
}

package main

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/solekey/solekey/vault"
)

type generateFlags struct {
	entryFlags
	length  int
	charset string
}

const (
	minLength = 12
	maxLength = 256
)

func generateCommand(a *app) *cobra.Command {
	var f generateFlags
	c := &cobra.Command{
		Use:   "generate LABEL",
		Short: "Store a random value without showing it",
		Long: `Make a random value and store it under a label. It is never shown, not even to
the owner. A label that exists is replaced only after confirmation.`,
		Example: `  solekey generate session/secret --identity web --length 48
  solekey generate db/password --exposure use --charset ascii`,
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeLabels,
		RunE: func(cmd *cobra.Command, args []string) error { return a.generate(cmd.Context(), args[0], f) },
	}
	f.declare(c)
	c.Flags().IntVar(&f.length, "length", 32, "characters, 12 to 256")
	c.Flags().StringVar(&f.charset, "charset", "alnum", "alnum, hex, base64 or ascii")
	_ = c.RegisterFlagCompletionFunc("charset", words("alnum", "hex", "base64", "ascii"))
	return c
}

func (a *app) generate(ctx context.Context, label string, f generateFlags) error {
	e, err := f.entry(label, a.now())
	if err != nil {
		return err
	}
	if f.length < minLength || f.length > maxLength {
		return failf(exitUsage, "--length takes %d to %d", minLength, maxLength)
	}
	alphabet, ok := alphabets(f.charset)
	if !ok {
		return failf(exitUsage, "--charset takes alnum, hex, base64 or ascii")
	}
	k, err := a.owner()
	if err != nil {
		return err
	}
	defer k.Close()
	targets, err := a.putTargets(ctx, k, e.Label, false)
	if err != nil {
		return err
	}
	if err := a.mayReplace(ctx, k, targets, e.Label); err != nil {
		return err
	}
	value := randomText(f.length, alphabet)
	e.Kind, e.Fields = vault.KindSecret, []vault.Field{{Name: "value", Value: value}}
	defer clear(value)
	return a.store(ctx, k, targets, e, nil)
}

// mayReplace asks before a value that nobody else may have is replaced.
func (a *app) mayReplace(ctx context.Context, k *vault.Keeper, targets []vault.Info, l vault.Label) error {
	for _, i := range targets {
		has, err := hasLabel(ctx, k, i, l)
		if err != nil {
			return err
		}
		if has {
			if err := a.confirm(ctx, fmt.Sprintf("%s exists in %s. Replace its value?", l, i.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func alphabets(charset string) (string, bool) {
	const (
		digits  = "0123456789"
		letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	)
	switch charset {
	case "alnum":
		return letters + digits, true
	case "hex":
		return digits + "abcdef", true
	case "base64":
		return letters + digits + "+/", true
	case "ascii":
		return letters + digits + "!#$%&()*+,-./:;<=>?@[]^_{|}~", true
	}
	return "", false
}

// randomText draws characters without bias: bytes beyond the last whole
// multiple of the alphabet are drawn again.
func randomText(n int, alphabet string) []byte {
	limit := 256 - 256%len(alphabet)
	out := make([]byte, 0, n)
	var buf [64]byte
	for len(out) < n {
		rand.Read(buf[:]) // never fails, see crypto/rand
		for _, b := range buf {
			if int(b) < limit && len(out) < n {
				out = append(out, alphabet[int(b)%len(alphabet)])
			}
		}
	}
	clear(buf[:])
	return out
}

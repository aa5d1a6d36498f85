package main

import (
	"context"
	"fmt"
	"os"
)

func Example() {
	dir, err := os.MkdirTemp("", "solekey-embed-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	if err := run(context.Background(), dir, os.Stdout); err != nil {
		fmt.Println(err)
	}
	// Output:
	// WEATHER_API_KEY       secret  reveal
	// WEATHER_REGION_TOKEN  secret  reveal
	// weather/login         totp    never
	// printed:  [redacted]
	// revealed: EXAMPLE-not-a-real-key
	// code:     6 digits
	// seed:     weather/login holds a TOTP seed; seeds never leave the vault.
	// other:    No label SOMEBODY_ELSES_KEY for this key.
}

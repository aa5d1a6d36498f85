// Solekey is the vault that takes the place of the .env file of AI agents:
// the command line, and the server that MCP clients start.
//
// This package is wiring and terminal manners. It reads flags, environment
// and terminal, and renders what package vault decides; it holds no rule
// about who may read what.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

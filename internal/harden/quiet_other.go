//go:build !unix

package harden

import "os"

// dumping is empty: no other process can send a signal that dumps.
func dumping() []os.Signal { return nil }

func terminate() {}

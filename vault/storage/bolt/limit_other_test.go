//go:build !linux

package bolt_test

import (
	"errors"
	"io"
)

// limited is for Linux only.
func limited(string, uint64, io.Writer) error { return errors.ErrUnsupported }

//go:build !linux

package bolt_test

import (
	"errors"
	"io"
)

// powerChild is the child of tests that need a loop device.
func powerChild(string, string, io.Writer) error { return errors.ErrUnsupported }

//go:build !linux

package bolt

import "os"

// probe reports that nobody has f locked.
func probe(f *os.File) (bool, error) {
	got, err := flock(f, true, false)
	if got {
		funlock(f)
	}
	return got, err
}

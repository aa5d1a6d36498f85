//go:build goexperiment.runtimesecret

package seal

import "runtime/secret"

// Do runs f and erases what it left in registers, on the stack and, at the
// next collection, on the heap. Call it around the steps that open or seal,
// without I/O, goroutines or storage calls inside, and copy the result into a
// buffer made outside. Builds without GOEXPERIMENT=runtimesecret call f alone.
func Do(f func()) { secret.Do(f) }

//go:build race

package seal_test

// sampled: the race detector makes every step 20 times slower and finds
// nothing in more of the same mutations.
const sampled = true

//go:build !race

package role

// raceFactor divides the number of runs.
const raceFactor = 1

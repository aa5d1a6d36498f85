package vault

import "strings"

// nearest returns the name that want was probably meant to be, or "".
// Upper and lower case, and the separators . _ / -, count as equal.
func nearest(want string, names []string) string {
	w := fold(want)
	best, least := "", max(1, len(w)/3)+1
	for _, n := range names {
		f := fold(n)
		d := distance(w, f, least)
		if d >= least && len(w) >= 4 && (strings.Contains(f, w) || strings.Contains(w, f) && len(f) >= 4) {
			d = least - 1
		}
		if d < least {
			best, least = n, d
		}
		if least == 0 {
			break
		}
	}
	return best
}

var folder = strings.NewReplacer(".", "_", "/", "_", "-", "_")

func fold(s string) string { return folder.Replace(strings.ToLower(s)) }

// distance is the edit distance of a and b, or limit if it is not smaller.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag, low := row[0], i
		row[0] = i
		for j := 1; j <= len(b); j++ {
			d := diag
			if a[i-1] != b[j-1] {
				d = 1 + min(diag, row[j], row[j-1])
			}
			diag, row[j] = row[j], d
			low = min(low, d)
		}
		if low >= limit {
			return limit
		}
	}
	return min(row[len(b)], limit)
}

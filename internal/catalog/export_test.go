package catalog

import "strings"

// Vocabulary returns every text that a hint may be made of, but for the hosts
// of tenants.
func Vocabulary() string {
	words := []string{
		string(None), string(Secret), string(TOTP), string(Import), string(Skip),
		ReasonConfig, ReasonPublic, ReasonEmpty, ReasonPlaceholder, ReasonReference, ReasonCounter, ReasonMigration,
		NoteWeak, NoteLive, NoteBrowser, NoteNumber,
	}
	for _, s := range services {
		words = append(words, s.hosts...)
		words = append(words, s.placement, s.rotate, NoteUnlike+s.provider, NoteLooksLike+s.provider)
		for _, sibling := range append([]string{s.user}, s.tenant...) {
			words = append(words, NoteNoHost+sibling)
		}
	}
	return strings.Join(words, "\n")
}

// Names returns the names of variables that the catalog knows.
func Names() []string {
	var names []string
	for _, s := range services {
		names = append(names, s.names...)
	}
	return names
}

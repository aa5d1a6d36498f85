package audit

// ParseJSON reads any line that is a record; ParseWritten only one that is
// written as the journal writes it.
func ParseJSON(b []byte) (Record, error) { return parseJSON(b) }

// ParseWritten is the quick way of Parse.
func ParseWritten(b []byte) (Record, bool) { return parseWritten(string(b)) }

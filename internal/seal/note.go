package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
)

// ErrNote reports bytes that are no signed note, or one of another signer.
var ErrNote = errors.New("not a note signed with this key")

// Of a signed note, c2sp.org/signed-note, this package writes and reads the
// form with one signature: text that ends with a line feed, an empty line, and
// "— NAME BASE64" with key ID and signature.
const (
	noteDash   = "— "
	sizeNoteID = 4
)

// SignNote returns text as a signed note under the audit key. text ends with a
// line feed and holds no other control character; name has no blank and no
// plus sign.
func (s *Store) SignNote(name, text string) []byte {
	public := s.AuditPublic()
	id := noteID(name, public)
	sig := append(id[:], s.Sign([]byte(text))...)
	return []byte(text + "\n" + noteDash + name + " " + base64.StdEncoding.EncodeToString(sig) + "\n")
}

// OpenNote returns the text of a note that the holder of the audit key public
// has signed under name. It accepts no byte more or less than SignNote writes.
func OpenNote(note []byte, name string, public []byte) (string, error) {
	at := bytes.LastIndex(note, []byte("\n\n"+noteDash))
	if at < 0 || len(public) != ed25519.PublicKeySize {
		return "", ErrNote
	}
	text := string(note[:at+1])
	line, ok := strings.CutSuffix(string(note[at+2+len(noteDash):]), "\n")
	if !ok || !noteText(text) {
		return "", ErrNote
	}
	b64, ok := strings.CutPrefix(line, name+" ")
	if !ok || strings.ContainsAny(b64, "\r\n") {
		return "", ErrNote
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(b64)
	id := noteID(name, public)
	if err != nil || len(sig) != sizeNoteID+ed25519.SignatureSize || !bytes.Equal(sig[:sizeNoteID], id[:]) {
		return "", ErrNote
	}
	if !ed25519.Verify(public, []byte(text), sig[sizeNoteID:]) {
		return "", ErrNote
	}
	return text, nil
}

// noteText reports whether text may stand in a note.
func noteText(text string) bool {
	for _, c := range []byte(text) {
		if c < ' ' && c != '\n' || c == 0x7f {
			return false
		}
	}
	return true
}

// noteID is the key ID of a note's signature.
func noteID(name string, public []byte) [sizeNoteID]byte {
	sum := sha256.Sum256(append([]byte(name+"\n\x01"), public...))
	return [sizeNoteID]byte(sum[:sizeNoteID])
}

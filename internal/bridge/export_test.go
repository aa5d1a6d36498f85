package bridge

import (
	"io"
	"net/http"
)

// Parse judges one line of the client.
func Parse(line []byte) (ok bool, answer []byte) {
	_, answer = parse(line)
	return answer == nil, answer
}

// Events returns the messages of an event stream.
func Events(r io.Reader) []string {
	var out []string
	d := newDecoder(r)
	for {
		b, err := d.next()
		if err != nil {
			return out
		}
		out = append(out, string(b))
	}
}

// Message returns what reaches the client of one message of the endpoint, in
// answer to the request.
func Message(request, body []byte, bearer string) []byte {
	m, bad := parse(request)
	if bad != nil || m.ID == nil {
		return nil
	}
	r := &reply{client: newClient(Options{}), request: m, bearer: bearer, status: http.StatusOK}
	line, _ := r.message(body)
	return line
}

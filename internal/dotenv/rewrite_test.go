package dotenv_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/solekey/solekey/internal/dotenv"
)

const ref = "solekey://A"

func TestRewriteReplacesOnlyValues(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"bare", "A=v", "A=solekey://A"},
		{"final newline", "A=v\n", "A=solekey://A\n"},
		{"crlf", "A=v\r\nB=w\r\n", "A=solekey://A\r\nB=w\r\n"},
		{"lone cr", "A=v\rB=w", "A=solekey://A\rB=w"},
		{"blanks stay", "  export  A  =  v  \t\n", "  export  A  =  solekey://A  \t\n"},
		{"comment stays", "A=v   # v is old\n", "A=solekey://A   # v is old\n"},
		{"quotes go", `A="v" # c`, "A=solekey://A # c"},
		{"lines go", "A='v\r\nw'\r\nB=1", "A=solekey://A\r\nB=1"},
		{"colon", "A: v", "A: solekey://A"},
		{"colon, nothing behind", "A:\nB=1", "A: solekey://A\nB=1"},
		{"empty", "A=\n", "A=solekey://A\n"},
		{"empty, blanks", "A=  \n", "A=solekey://A  \n"},
		{"empty and comment", "A= # c", "A=solekey://A # c"},
		{"empty, comment at once", "A=#c", "A='solekey://A'#c"},
		{"comment at once after quote", `A="v"#c`, "A='solekey://A'#c"},
		{"duplicates, all of them", "A=1\nB=2\nA=3\n", "A=solekey://A\nB=2\nA=solekey://A\n"},
		{"others stay", "x y\n\n#A=v\nexport A\nA=v", "x y\n\n#A=v\nexport A\nA=solekey://A"},
		{"mark", "\ufeffA=v\n", "\ufeffA=solekey://A\n"},
		{"similar names stay", "AA=v\nA.A=v\na=v\nA=v", "AA=v\nA.A=v\na=v\nA=solekey://A"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := parse(t, tt.in).Rewrite(map[string]string{"A": ref, "ABSENT": "x"})
			if string(got) != tt.want {
				t.Errorf("Rewrite of %q = %q, want %q", tt.in, got, tt.want)
			}
			for _, e := range parse(t, string(got)).Entries() {
				if e.Name == "A" && e.Value != ref {
					t.Errorf("A reads as %q, want %q", e.Value, ref)
				}
			}
		})
	}
}

func TestRewriteKeepsUTF16(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		in := toUTF16("# ключ 🔑\r\nA='v\r\nw' # c\r\nB=🔑\r\n", order)
		want := toUTF16("# ключ 🔑\r\nA=solekey://A # c\r\nB=🔑\r\n", order)
		if got := parse(t, string(in)).Rewrite(map[string]string{"A": ref}); !bytes.Equal(got, want) {
			t.Errorf("%v: Rewrite = %q, want %q", order, got, want)
		}
	}
}

func TestAnyReferenceReadsAsItself(t *testing.T) {
	tests := []struct{ ref, want string }{
		{"solekey://app/OPENAI_API_KEY", "solekey://app/OPENAI_API_KEY"},
		{"solekey://a.b-c?field=user_name", "solekey://a.b-c?field=user_name"},
		{"", ""},
		{"with blank", "'with blank'"},
		{" # ", "' # '"},
		{"a#b", "'a#b'"},
		{"${B}$(ls)", "'${B}$(ls)'"},
		{`"x"`, `'"x"'`},
		{"it's", `"it's"`},
		{`it's "\n" $B`, `"it's \"\\n\" \$B"`},
		{"a\nb\rc\td", `"a\nb\rc\td"`},
		{"`x`", "'`x`'"},
		{"-----BEGIN", "'-----BEGIN'"},
		{"ü", "'ü'"},
	}
	for _, tt := range tests {
		for _, in := range []string{"A=v\nB=b\n", "A: 'v' # c\nB=b\n", "A=#c\nB=b\n", "A:\nB=b\n"} {
			got := string(parse(t, in).Rewrite(map[string]string{"A": tt.ref}))
			e := parse(t, got).Entries()[0]
			if e.Value != tt.ref || len(e.Refers) > 0 || e.Command {
				t.Errorf("Rewrite of %q with %q = %q, which reads as %q", in, tt.ref, got, e.Value)
			}
			if in == "A=v\nB=b\n" && got != "A="+tt.want+"\nB=b\n" {
				t.Errorf("Rewrite with %q = %q, want %q", tt.ref, got, tt.want)
			}
		}
	}
	if got := string(parse(t, "A=v").Rewrite(map[string]string{"A": "a\x00b\xff"})); got != "A='a\ufffdb\ufffd'" {
		t.Errorf("Rewrite with a reference that is no text = %q", got)
	}
}

// FuzzDotenv: a file is read or refused by line. What is read goes out byte by
// byte, and rewriting changes the named variables and nothing else.
func FuzzDotenv(f *testing.F) {
	for i, tt := range shapes {
		f.Add([]byte(tt.in), uint64(i))
	}
	for i, tt := range malformed {
		if len(tt.in) < 4096 {
			f.Add([]byte(tt.in), uint64(i))
		}
	}
	f.Add(toUTF16("A=v\r\nB: 'w'#\r\n", binary.LittleEndian), uint64(3))
	f.Add(toUTF16("A=v\r\nB: 'w'#\r\n", binary.BigEndian), uint64(3))
	f.Fuzz(func(t *testing.T, in []byte, pick uint64) {
		file, err := dotenv.Parse(bytes.NewReader(in))
		if err != nil {
			checkError(t, err)
			return
		}
		if got := file.Rewrite(nil); !bytes.Equal(got, in) {
			t.Fatalf("Rewrite(nil) = %q, want %q", got, in)
		}
		checkRewrite(t, file, pick)
	})
}

// checkError holds an error against the texts that are known.
func checkError(t *testing.T, err error) {
	t.Helper()
	number, problem, ok := strings.Cut(err.Error(), ": ")
	if !ok || number == "" || number[0] == '0' || strings.Trim(number, "0123456789") != "" {
		t.Fatalf("error %q names no line", err)
	}
	for _, m := range malformed {
		if strings.HasSuffix(m.want, ": "+problem) {
			return
		}
	}
	t.Fatalf("error %q is not one of the known texts", err)
}

// checkRewrite gives the variables that pick selects a reference each and
// compares all others.
func checkRewrite(t *testing.T, file *dotenv.File, pick uint64) {
	t.Helper()
	before := file.Entries()
	texts := []string{"solekey://L?field=f", "", "it's # $A ${A} \\", "\r\n\t\"", "x"}
	refs := map[string]string{}
	for i, e := range before {
		if pick>>(i%64)&1 == 1 {
			refs[e.Name] = texts[(i+int(pick%7))%len(texts)]
		}
	}
	out := file.Rewrite(refs)
	if len(out) > dotenv.MaxSize {
		return
	}
	again, err := dotenv.Parse(bytes.NewReader(out))
	if err != nil {
		t.Fatalf("Parse after Rewrite = %v, of %q", err, out)
	}
	after := again.Entries()
	if len(after) != len(before) || len(again.Others()) != len(file.Others()) {
		t.Fatalf("%d entries and %d others, want %d and %d, in %q", len(after), len(again.Others()), len(before), len(file.Others()), out)
	}
	for i, e := range after {
		want := before[i].Value
		if ref, ok := refs[e.Name]; ok {
			want = ref
		}
		if e.Name != before[i].Name || e.Value != want || e.Export != before[i].Export {
			t.Fatalf("entry %d is %q=%q, want %q=%q, in %q", i, e.Name, e.Value, before[i].Name, want, out)
		}
	}
	if back := again.Rewrite(refs); !bytes.Equal(back, out) {
		t.Fatalf("a second Rewrite = %q, want %q", back, out)
	}
}

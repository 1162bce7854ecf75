package dub

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// The parts that the command does not use: several segments at once, an end in the middle, and errors as they are read.

const golden = "../../protocol/golden"

func TestErrorsAreReadAsTheProtocolSays(t *testing.T) {
	for _, expected := range []struct {
		text    string
		code    Code
		retry   time.Duration
		message string // the text unless given
	}{
		{"in ensemble 'dub', gate: code=full retry_after_ms=2000: all is taken", Full, 2 * time.Second, "all is taken"},
		{"gate: code=draining retry_after_ms=0: ask another", Draining, 0, "ask another"},
		{"gate: code=new_one: of a later server\ntraceback", "new_one", 0, "of a later server"},
		{"inference request must specify the START flag", SequenceLost, 0, ""},
		{"Stub process 'gate_0' is not healthy.", ModelDied, 0, ""},
		{"[request id: 1] expected 5 inputs but got 4 inputs for model 'dub'", BadRequest, 0, ""},
		{"unexpected shape for input 'AUDIO'", BadRequest, 0, ""},
		{"failed to allocate", Fault, 0, ""},
	} {
		message := expected.message
		if message == "" {
			message = expected.text
		}
		if read := ReadError(expected.text); *read != (Error{expected.code, message, expected.retry}) {
			t.Errorf("%q is read as %+v", expected.text, *read)
		}
	}
}

func TestWhatIsNoAddressIsRefusedBeforeAnythingIsSent(t *testing.T) {
	for _, text := range []string{"", "8001", "localhost", ":8001", "http://127.0.0.1:8001", "127.0.0.1:0", "a:65536", "::1:1"} {
		if _, err := Open(text, Options{}); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "'"+text+"'") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestIDsHave63BitsAndDiffer(t *testing.T) {
	seen, large := map[int64]bool{}, false
	for count := 0; count < 1000; count++ {
		id, err := NewSequenceID()
		if err != nil || id <= 0 || seen[id] {
			t.Fatalf("id %d, %v", id, err)
		}
		seen[id] = true
		large = large || id > 1<<62
	}
	if !large {
		t.Error("no id uses all bits")
	}
}

func TestAnswersComeInTheOrderOfTheSegments(t *testing.T) {
	stream, segment := open(t, 0)
	defer stream.Close()
	send(t, stream, segment, false)
	send(t, stream, Segment{}, false)
	send(t, stream, Segment{}, true)
	for _, status := range []string{"ok", "no_speech", "no_speech"} {
		if answer, err := stream.Recv(); err != nil || answer.Status != status {
			t.Fatalf("%v, %v where %s was expected", answer, err, status)
		}
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("%v behind the last answer", err)
	}
	var refused *Error
	if err := stream.Send(segment, false); !errors.As(err, &refused) || refused.Code != SequenceLost {
		t.Errorf("%v behind END", err)
	}
}

func TestCloseGivesTheSlotBack(t *testing.T) {
	stream, segment := open(t, 0)
	send(t, stream, Segment{}, false)
	if answer, err := stream.Recv(); err != nil || answer.Status != "no_speech" {
		t.Fatalf("%v, %v", answer, err)
	}
	send(t, stream, segment, false) // nobody reads its answer
	stream.Close()
	again, _ := open(t, stream.SequenceID()) // refused as `taken` where END did not arrive
	defer again.Close()
	send(t, again, Segment{}, true)
	if answer, err := again.Recv(); err != nil || answer.Status != "no_speech" {
		t.Fatalf("%v, %v", answer, err)
	}
}

func TestAStreamThatWasLostIsNamed(t *testing.T) {
	position := Position{SequenceID: 1, Start: true, Timeout: time.Millisecond, Replaces: 1<<62 + 1}
	parameters := InferRequest("1", Segment{}, Languages{Source: "en", Target: "es"}, position).Parameters
	if parameters["replaces"].GetInt64Param() != 1<<62+1 || parameters["timeout"].GetInt64Param() != 1000 {
		t.Errorf("%v", parameters)
	}
}

func open(t *testing.T, sequence int64) (*Stream, Segment) {
	t.Helper()
	url := os.Getenv("POLYLIP_URL")
	if url == "" {
		t.Skip("POLYLIP_URL names no server")
	}
	segment, source, err := ReadSegmentFolder(golden)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := Open(url, Options{Languages: Languages{Source: source, Target: "es"}, SequenceID: sequence})
	if err != nil {
		t.Fatal(err)
	}
	return stream, segment
}

func send(t *testing.T, stream *Stream, segment Segment, last bool) {
	t.Helper()
	if err := stream.Send(segment, last); err != nil {
		t.Fatal(err)
	}
}

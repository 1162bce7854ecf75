package dub

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/status"
)

// Code says what went wrong; its values never change their meaning. The server may have codes that are not here.
type Code string

// The server's own codes, and those that say how the connection failed. The tables are in docs/protocol.md.
const (
	Full         Code = "full"
	Draining     Code = "draining"
	Taken        Code = "taken"
	SequenceLost Code = "sequence_lost"
	BadRequest   Code = "bad_request"
	ModelDied    Code = "model_died"
	Fault        Code = "fault"
	ServerLost   Code = "server_lost"
	Deadline     Code = "deadline"
)

// Error is a segment without an answer.
type Error struct {
	Code       Code
	Message    string
	RetryAfter time.Duration // 0 where the server did not say
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// ErrInput is wrapped by the errors of input that cannot be used: a file, a language.
var ErrInput = errors.New("input")

var (
	codeIn  = regexp.MustCompile(`\bcode=([a-z_]+)`)
	retryIn = regexp.MustCompile(`\bretry_after_ms=(\d+)`)
	// What is read, or no concern of a person's.
	prefix = regexp.MustCompile(`^(in ensemble '\w+', )?(\w+: code=\w+( retry_after_ms=\d+)?: )?`)
)

// What Triton itself says, which has no `code=`; the first match wins.
var triton = []struct {
	pattern *regexp.Regexp
	code    Code
}{
	{regexp.MustCompile(`must specify the START flag`), SequenceLost},
	{regexp.MustCompile(`is not healthy`), ModelDied},
	{regexp.MustCompile(`unexpected shape for input|expected \d+ inputs but got`), BadRequest},
}

// ReadError reads the error_message of a response.
func ReadError(message string) *Error {
	read := &Error{Code: Fault, Message: firstLine(prefix.ReplaceAllString(message, ""))}
	for _, said := range triton {
		if said.pattern.MatchString(message) {
			read.Code = said.code
			break
		}
	}
	if found := codeIn.FindStringSubmatch(message); found != nil {
		read.Code = Code(found[1])
	}
	if found := retryIn.FindStringSubmatch(message); found != nil {
		if ms, err := strconv.Atoi(found[1]); err == nil {
			read.RetryAfter = time.Duration(ms) * time.Millisecond
		}
	}
	return read
}

// readLoss says why a call has failed, with everything on it.
func readLoss(url string, err error) *Error {
	said := status.Convert(err)
	detail := fmt.Sprintf("%s: %s", said.Code(), firstLine(said.Message()))
	return &Error{Code: ServerLost, Message: fmt.Sprintf("no connection to a tritonserver at %s (%s)", url, detail)}
}

func inputError(format string, values ...interface{}) error {
	return &unusable{fmt.Sprintf(format, values...)}
}

type unusable struct{ message string }

func (u *unusable) Error() string { return firstLine(u.message) }
func (u *unusable) Unwrap() error { return ErrInput }

func firstLine(text string) string { return strings.SplitN(text, "\n", 2)[0] }

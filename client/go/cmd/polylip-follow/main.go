// An example of a speaker who goes on: the segment folders named on standard input go over one stream, an answer in
// JSON comes out for each, and a server that is about to stop is left for another. Exits with 3 where a segment had none.
//
//	polylip-follow URL SOURCE_LANGUAGE TARGET_LANGUAGE [SECONDS]
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"polylip/dub"
)

type answered struct {
	Status     string `json:"status"`
	TargetText string `json:"target_text"`
	MoveMS     int32  `json:"move_ms"`
	Stream     string `json:"stream"`
}

type refused struct {
	Error        dub.Code `json:"error"`
	RetryAfterMS int64    `json:"retry_after_ms"`
}

var errUnanswered = errors.New("a segment had no answer: see the output")

func main() {
	switch err := run(os.Args[1:]); {
	case errors.Is(err, errUnanswered):
		os.Exit(3)
	case err != nil:
		fmt.Fprintln(os.Stderr, "polylip:", err)
		os.Exit(2)
	}
}

func run(words []string) error {
	if len(words) < 3 || len(words) > 4 {
		return errors.New("usage: polylip-follow URL SOURCE_LANGUAGE TARGET_LANGUAGE [SECONDS]")
	}
	options := dub.Options{Languages: dub.Languages{Source: words[1], Target: words[2]}}
	if len(words) == 4 {
		seconds, err := strconv.ParseFloat(words[3], 64)
		if err != nil {
			return err
		}
		options.Timeout = time.Duration(seconds * float64(time.Second))
	}
	return follow(words[0], options)
}

func follow(url string, options dub.Options) error {
	var stream *dub.Stream
	leave := func() {
		if stream != nil {
			stream.Close()
			stream = nil
		}
	}
	defer leave()
	unanswered := 0
	output := json.NewEncoder(os.Stdout)
	folders := bufio.NewScanner(os.Stdin)
	for folders.Scan() {
		segment, _, err := dub.ReadSegmentFolder(folders.Text())
		if err != nil {
			return err
		}
		if stream != nil && stream.MoveMS() > 0 {
			leave()
		}
		answer, err := one(&stream, url, options, segment)
		var failed *dub.Error
		switch {
		case errors.As(err, &failed):
			if stream != nil {
				options.Replaces = stream.SequenceID() // the stream that was lost
			}
			leave()
			unanswered++
			err = output.Encode(refused{Error: failed.Code, RetryAfterMS: failed.RetryAfter.Milliseconds()})
		case err == nil:
			err = output.Encode(answered{answer.Status, answer.TargetText, answer.MoveMS, stream.ID()})
		}
		if err != nil {
			return err
		}
	}
	if err := folders.Err(); err != nil || unanswered == 0 {
		return err
	}
	return errUnanswered
}

// one is the answer to a segment, over the stream that is open, or over a new one.
func one(stream **dub.Stream, url string, options dub.Options, segment dub.Segment) (*dub.Answer, error) {
	if *stream == nil {
		opened, err := dub.Open(url, options)
		if err != nil {
			return nil, err
		}
		*stream = opened
	}
	if err := (*stream).Send(segment, false); err != nil {
		return nil, err
	}
	return (*stream).Recv()
}

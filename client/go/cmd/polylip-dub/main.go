// The command: dubs a segment folder, or makes and reads the messages of the golden files.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"polylip/dub"
	"polylip/inference"
)

const help = `Dub a segment folder: translated voice and new mouths from a tritonserver with the model dub.

  polylip-dub SEGMENT_FOLDER --to es -o OUT

A segment folder holds segment.json, the sound and the pictures; "polylip segment CLIP -o FOLDER" cuts one.
OUT gets answer.json, voice.wav, and mouth-00000.png and so on (.jpg with --format jpeg), in place of an older answer.

  --to LANGUAGE          language to speak: es, es-MX, Spanish
  -o, --out OUT          folder for the answer; made where it is not there
  --url HOST:PORT        gRPC endpoint of the server                    [127.0.0.1:8001]
  --format raw|jpeg      mouths without loss, or as small JPEGs         [raw]
  --timeout SECONDS      deadline of the segment                        [30]
  --sequence-id ID       id of the stream, 1 to 2^63-1                  [random]
  --stream-id NAME       metadata x-stream-id, for a proxy in between   [random]
  --tls-ca FILE          PEM: trust servers whose certificate this CA signed, and use TLS
  --tls-cert FILE        PEM: certificate of this client
  --tls-key FILE         PEM: its key
  --tls-server-name NAME name that the server's certificate must have   [the host of --url]
  --write-request FILE   write the request that would be sent, and send nothing
  --golden               with it: the fixed ids of client/protocol/golden
  --read-response FILE   read an answer from a file, not from a server; needs --out only
  -h, --help

Exit codes: 0 dubbed, or nothing was said; 2 the input cannot be used; 3 the server did not do it.
`

const (
	exitUnusable   = 2
	exitServer     = 3
	goldenSequence = 4611686018427387905
)

type arguments struct {
	folder, to, out, url, format, streamID string
	timeoutS                               float64
	sequenceID                             int64
	ca, certificate, key, serverName       string
	writeRequest, readResponse             string
	golden                                 bool
}

func main() { os.Exit(run(os.Args[1:])) }

func run(words []string) int {
	given, err := parse(words)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(help)
		return 0
	}
	var answer *dub.Answer
	if err == nil {
		answer, err = work(given)
	}
	if err != nil {
		return refuse(err)
	}
	if answer == nil {
		return 0 // the request is written
	}
	if err := dub.WriteAnswer(answer, given.out); err != nil {
		return refuse(err)
	}
	switch answer.Status { // docs/protocol.md has the table
	case "ok", "no_speech":
		fmt.Printf("%s: %s, %d samples, %d mouths\n", given.out, answer.Status, len(answer.Audio), len(answer.MouthFrames))
		return 0
	case "bad_audio", "bad_frames", "unsupported":
		complain("the server answered %s: %s", answer.Status, answer.Message)
		return exitUnusable
	default:
		complain("the server answered %s: %s", answer.Status, answer.Message)
		return exitServer
	}
}

func parse(words []string) (arguments, error) {
	var given arguments
	flags := flag.NewFlagSet("polylip-dub", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&given.to, "to", "", "")
	flags.StringVar(&given.out, "out", "", "")
	flags.StringVar(&given.out, "o", "", "")
	flags.StringVar(&given.url, "url", "127.0.0.1:8001", "")
	flags.StringVar(&given.format, "format", "raw", "")
	flags.Float64Var(&given.timeoutS, "timeout", 30, "")
	flags.Int64Var(&given.sequenceID, "sequence-id", 0, "")
	flags.StringVar(&given.streamID, "stream-id", "", "")
	flags.StringVar(&given.ca, "tls-ca", "", "")
	flags.StringVar(&given.certificate, "tls-cert", "", "")
	flags.StringVar(&given.key, "tls-key", "", "")
	flags.StringVar(&given.serverName, "tls-server-name", "", "")
	flags.StringVar(&given.writeRequest, "write-request", "", "")
	flags.StringVar(&given.readResponse, "read-response", "", "")
	flags.BoolVar(&given.golden, "golden", false, "")
	// The package flag ends at the first word that is no option; options may come behind the folder too.
	for rest := words; ; {
		if err := flags.Parse(rest); errors.Is(err, flag.ErrHelp) {
			return given, err
		} else if err != nil {
			return given, fmt.Errorf("%v; --help lists the options", err)
		}
		if flags.NArg() == 0 {
			break
		}
		if given.folder != "" {
			return given, errors.New("give one segment folder")
		}
		given.folder, rest = flags.Arg(0), flags.Args()[1:]
	}
	return given, check(given, flags)
}

var streamID = regexp.MustCompile(`^[!-~]{1,128}$`)

func check(given arguments, flags *flag.FlagSet) error {
	named := map[string]bool{}
	flags.Visit(func(option *flag.Flag) { named[option.Name] = true })
	needs := func(value, what string) error {
		if value == "" {
			return fmt.Errorf("give %s; --help shows how", what)
		}
		return nil
	}
	switch {
	case given.format != "raw" && given.format != "jpeg":
		return fmt.Errorf("--format %s: give raw or jpeg", given.format)
	case !(given.timeoutS > 0):
		return fmt.Errorf("--timeout %v: give seconds above 0", given.timeoutS)
	case named["sequence-id"] && given.sequenceID < 1:
		return fmt.Errorf("--sequence-id %d: give a whole number from 1 to 2^63-1", given.sequenceID)
	case named["stream-id"] && !streamID.MatchString(given.streamID):
		return errors.New("--stream-id: give 1 to 128 letters, digits and signs without spaces")
	case (given.certificate == "") != (given.key == ""):
		return errors.New("--tls-cert and --tls-key belong together: give both, or neither")
	case given.readResponse != "":
		return needs(given.out, "-o OUT")
	case given.folder == "":
		return needs("", "a segment folder")
	case given.to == "":
		return needs("", "--to LANGUAGE")
	case given.writeRequest == "":
		return needs(given.out, "-o OUT")
	}
	return nil
}

// work has no answer where a request is written.
func work(given arguments) (*dub.Answer, error) {
	if given.readResponse != "" {
		return readResponse(given.readResponse)
	}
	segment, source, err := dub.ReadSegmentFolder(given.folder)
	if err != nil {
		return nil, err
	}
	options := dub.Options{
		Languages:  dub.Languages{Source: source, Target: given.to, MouthFormat: given.format},
		StreamID:   given.streamID,
		Timeout:    time.Duration(given.timeoutS * float64(time.Second)),
		SequenceID: given.sequenceID,
	}
	if given.writeRequest != "" {
		return nil, writeRequest(given, segment, options)
	}
	if options.TLS, err = tlsConfig(given); err != nil {
		return nil, err
	}
	stream, err := dub.Open(given.url, options)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	if err := stream.Send(segment, true); err != nil {
		return nil, err
	}
	return stream.Recv()
}

func writeRequest(given arguments, segment dub.Segment, options dub.Options) error {
	id, sequence := "1", options.SequenceID
	if given.golden {
		id, sequence = "golden", goldenSequence
	}
	if sequence == 0 {
		random, err := dub.NewSequenceID()
		if err != nil {
			return err
		}
		sequence = random
	}
	position := dub.Position{SequenceID: sequence, Start: true, End: true, Timeout: options.Timeout}
	data, err := proto.Marshal(dub.InferRequest(id, segment, options.Languages, position))
	if err != nil {
		return err
	}
	if err := os.WriteFile(given.writeRequest, data, 0o666); err != nil {
		return fmt.Errorf("%s: cannot be written (%v); name another file", given.writeRequest, err)
	}
	return nil
}

func readResponse(path string) (*dub.Answer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var response inference.ModelInferResponse
	if err := proto.Unmarshal(data, &response); err != nil {
		return nil, fmt.Errorf("%s: is no serialised ModelInferResponse (%v)", path, err)
	}
	answer, err := dub.ReadAnswer(&response)
	if err != nil {
		return nil, fmt.Errorf("%s: is no answer of dub (%v)", path, err)
	}
	return answer, nil
}

// tlsConfig is nil without TLS.
func tlsConfig(given arguments) (*tls.Config, error) {
	if given.ca == "" && given.certificate == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: given.serverName}
	if given.ca != "" {
		pem, err := os.ReadFile(given.ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the TLS CA file %s holds no PEM certificate", given.ca)
		}
	}
	if given.certificate != "" {
		pair, err := tls.LoadX509KeyPair(given.certificate, given.key)
		if err != nil {
			return nil, fmt.Errorf("the TLS files cannot be used (%v); give PEM files of one pair", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// refuse says what went wrong, in one line, and is the exit code.
func refuse(err error) int {
	var failed *dub.Error
	if !errors.As(err, &failed) {
		complain("%v", err)
		return exitUnusable
	}
	wait := ""
	if failed.RetryAfter > 0 {
		wait = fmt.Sprintf("; try again in %v", failed.RetryAfter)
	}
	if failed.Code == dub.ServerLost {
		wait += "; start a server with: polylip serve, or check --url (its gRPC port) and the TLS options"
	}
	complain("%v%s", failed, wait)
	return exitServer
}

func complain(format string, values ...interface{}) {
	fmt.Fprintln(os.Stderr, "polylip: "+strings.SplitN(fmt.Sprintf(format, values...), "\n", 2)[0])
}

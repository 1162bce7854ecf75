// Package dub is one speaker's stream to the model dub: segments go out as they come, and each is answered within its
// deadline or fails. The contract is docs/protocol.md.
package dub

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"polylip/inference"
)

const (
	maxAnswerBytes = 64 << 20 // gRPC refuses answers over 4 MiB unless told otherwise
	connectTimeout = 5 * time.Second
	closeTimeout   = 2 * time.Second  // for a server with nothing left to answer to end the call
	defaultTimeout = 30 * time.Second // of a segment; one takes 1 to 3 s on two cores
	ahead          = 16               // segments without an answer; Send waits when there are more
	// Fixed windows. With gRPC's own, which grow, it pings the server now and then: 2.51 hangs up on pings.
	windowBytes = 1 << 20
)

// Options of a stream. What is zero has a default.
type Options struct {
	Languages
	TLS        *tls.Config   // nil: none
	StreamID   string        // metadata x-stream-id: 1 to 128 printable ASCII characters without spaces; random
	Timeout    time.Duration // deadline of each segment, from when it is sent; 30 s
	SequenceID int64         // random
	Replaces   int64         // id of the speaker's stream before, where that was lost: its slot is given back
}

// Stream is one sequence of dub. Send and Recv may run side by side, each in one goroutine.
type Stream struct {
	url        string
	options    Options
	connection *grpc.ClientConn
	call       inference.GRPCInferenceService_ModelStreamInferClient
	cancel     context.CancelFunc
	requests   chan *inference.ModelInferRequest // to the writer; closed with the stream
	order      chan *pending                     // without an answer, as sent; closed behind the last
	read       chan struct{}                     // closed when nothing more comes
	sent       int
	finished   bool // END is sent
	closed     bool

	mutex   sync.Mutex
	waiting map[string]*pending
	lost    *Error
	moveMS  int32
}

type pending struct {
	id       string
	deadline time.Time
	done     chan result // gets one
}

type result struct {
	answer *Answer
	err    error
}

// NewSequenceID is a random id of 63 bits that is not 0.
func NewSequenceID() (int64, error) {
	var random [8]byte
	for {
		if _, err := rand.Read(random[:]); err != nil {
			return 0, err
		}
		if id := int64(binary.BigEndian.Uint64(random[:]) >> 1); id != 0 {
			return id, nil
		}
	}
}

// Open connects to host:port. The error is an ErrInput where that is none, an *Error where no server answers.
func Open(url string, options Options) (*Stream, error) {
	if host, port, err := net.SplitHostPort(url); err != nil || host == "" || !isPort(port) {
		return nil, inputError("'%s' is not host:port, for example: 127.0.0.1:8001", url)
	}
	if options.Timeout == 0 {
		options.Timeout = defaultTimeout
	}
	if options.SequenceID == 0 {
		id, err := NewSequenceID()
		if err != nil {
			return nil, err
		}
		options.SequenceID = id
	}
	if options.StreamID == "" {
		var random [16]byte
		if _, err := rand.Read(random[:]); err != nil {
			return nil, err
		}
		options.StreamID = hex.EncodeToString(random[:])
	}
	security := grpc.WithInsecure()
	if options.TLS != nil {
		security = grpc.WithTransportCredentials(credentials.NewTLS(options.TLS))
	}
	// WithNoProxy: that of the environment is for the web.
	connection, err := grpc.Dial(url, security, grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(windowBytes), grpc.WithInitialConnWindowSize(windowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxAnswerBytes)))
	if err != nil {
		return nil, readLoss(url, err)
	}
	ctx, cancel := context.WithCancel(
		metadata.AppendToOutgoingContext(context.Background(), "x-stream-id", options.StreamID))
	stream := &Stream{
		url: url, options: options, connection: connection, cancel: cancel,
		requests: make(chan *inference.ModelInferRequest, ahead), order: make(chan *pending, ahead),
		read: make(chan struct{}), waiting: map[string]*pending{},
	}
	if err := stream.begin(ctx); err != nil {
		cancel()
		connection.Close()
		return nil, err
	}
	return stream, nil
}

func isPort(text string) bool {
	port, err := strconv.ParseUint(text, 10, 16)
	return err == nil && port > 0
}

func (s *Stream) begin(ctx context.Context) error {
	service := inference.NewGRPCInferenceServiceClient(s.connection)
	patience := connectTimeout
	if s.options.Timeout < patience {
		patience = s.options.Timeout
	}
	connecting, done := context.WithTimeout(ctx, patience)
	defer done()
	reply, err := service.ServerReady(connecting, &inference.ServerReadyRequest{})
	if status.Code(err) == codes.DeadlineExceeded {
		return &Error{Code: Deadline, Message: fmt.Sprintf("the server at %s did not answer within %v", s.url, patience)}
	}
	if err != nil {
		return readLoss(s.url, err)
	}
	if !reply.Ready {
		return &Error{Code: ServerLost, Message: fmt.Sprintf("the tritonserver at %s is not ready", s.url)}
	}
	if s.call, err = service.ModelStreamInfer(ctx); err != nil {
		return readLoss(s.url, err)
	}
	go s.write()
	go s.receive()
	return nil
}

// Send sends the next segment; last says END with it. Its deadline runs from now. What fails is told by Recv.
func (s *Stream) Send(segment Segment, last bool) error {
	if s.finished {
		return &Error{Code: SequenceLost, Message: "the stream has ended; open another"}
	}
	s.sent++
	s.finished = last
	sent := &pending{strconv.Itoa(s.sent), time.Now().Add(s.options.Timeout), make(chan result, 1)}
	position := Position{SequenceID: s.options.SequenceID, Start: s.sent == 1, End: last, Timeout: s.options.Timeout}
	if position.Start {
		position.Replaces = s.options.Replaces
	}
	s.mutex.Lock()
	lost := s.lost
	s.waiting[sent.id] = sent
	s.mutex.Unlock()
	s.order <- sent
	if last {
		close(s.order)
	}
	if lost != nil {
		s.settle(sent.id, result{err: lost})
		return nil
	}
	s.hand(InferRequest(sent.id, segment, s.options.Languages, position), time.Until(sent.deadline))
	return nil
}

// hand gives a request to the writer; a server that reads nothing is not waited for longer than `patience`.
func (s *Stream) hand(request *inference.ModelInferRequest, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case s.requests <- request:
	case <-s.read:
	case <-timer.C:
	}
}

// Recv waits for the answer to the oldest segment without one. The error is an *Error, or io.EOF behind the last.
func (s *Stream) Recv() (*Answer, error) {
	oldest, more := <-s.order
	if !more {
		return nil, io.EOF
	}
	return s.wait(oldest)
}

func (s *Stream) wait(oldest *pending) (*Answer, error) {
	timer := time.NewTimer(time.Until(oldest.deadline))
	defer timer.Stop()
	select {
	case got := <-oldest.done:
		return got.answer, got.err
	case <-timer.C:
		message := fmt.Sprintf("the server at %s gave no answer within %v", s.url, s.options.Timeout)
		s.settle(oldest.id, result{err: &Error{Code: Deadline, Message: message}})
		got := <-oldest.done // the answer, where it has come just now
		return got.answer, got.err
	}
}

// SequenceID is the one in use.
func (s *Stream) SequenceID() int64 { return s.options.SequenceID }

// ID is the value of x-stream-id.
func (s *Stream) ID() string { return s.options.StreamID }

// MoveMS is above 0 when the server is about to stop: close this stream and open another within so many milliseconds.
func (s *Stream) MoveMS() int32 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.moveMS
}

// Close says END where that was not done, half-closes and reads to the end. Call it when Send and Recv are done.
func (s *Stream) Close() {
	if s.closed {
		return
	}
	s.closed = true
	if s.sent > 0 && !s.finished { // nobody waits for the answer to END
		position := Position{SequenceID: s.options.SequenceID, End: true, Timeout: s.options.Timeout}
		s.hand(InferRequest("end", Segment{}, s.options.Languages, position), closeTimeout)
	}
	close(s.requests) // the writer half-closes
	for len(s.order) > 0 {
		_, _ = s.wait(<-s.order)
	}
	// A call that is cancelled while the server writes can crash tritonserver 2.51: only where it does not end.
	select {
	case <-s.read:
	case <-time.After(closeTimeout):
	}
	s.cancel()
	<-s.read
	s.connection.Close()
}

// write sends what Send gives it: sending blocks while the server does not read.
func (s *Stream) write() {
	failed := false
	for request := range s.requests {
		if !failed && s.call.Send(request) != nil {
			failed = true // receive gets to know the cause
		}
	}
	_ = s.call.CloseSend()
}

func (s *Stream) receive() {
	defer close(s.read)
	for {
		reply, err := s.call.Recv()
		if err != nil {
			s.lose(err)
			return
		}
		s.take(reply)
	}
}

func (s *Stream) take(reply *inference.ModelStreamInferResponse) {
	response := reply.GetInferResponse()
	if reply.ErrorMessage != "" {
		s.settle(response.GetId(), result{err: ReadError(reply.ErrorMessage)})
		return
	}
	final, said := response.GetParameters()["triton_final_response"]
	if len(response.GetOutputs()) == 0 && said && !final.GetBoolParam() {
		return
	}
	answer, err := ReadAnswer(response)
	if err != nil {
		s.settle(response.GetId(), result{err: &Error{Code: Fault, Message: err.Error()}})
		return
	}
	s.mutex.Lock()
	s.moveMS = answer.MoveMS
	s.mutex.Unlock()
	s.settle(response.GetId(), result{answer: answer})
}

// settle tells a segment's result; one whose deadline has passed gets none.
func (s *Stream) settle(id string, told result) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if sent, found := s.waiting[id]; found {
		delete(s.waiting, id)
		sent.done <- told
	}
}

func (s *Stream) lose(err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if err == io.EOF {
		s.lost = &Error{Code: ServerLost, Message: fmt.Sprintf("the server at %s ended the stream", s.url)}
	} else {
		s.lost = readLoss(s.url, err)
	}
	for id, sent := range s.waiting {
		delete(s.waiting, id)
		sent.done <- result{err: s.lost}
	}
}

// codec takes the place of gRPC's own: in Debian that one has an older protobuf, which cannot read these messages.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

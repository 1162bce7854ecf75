package dub

import (
	"time"

	"polylip/inference"
)

// Segment is what somebody said, and the picture of it. What is zero is not sent.
type Segment struct {
	Audio        []float32 // mono, 16 kHz, -1 to 1
	Frames       [][]byte  // JPEG, 640x360
	FrameMS      []int64   // of each frame, on the stream's clock
	AudioMS      *int64    // of the first sample; the first frame's unless given
	Context      string
	KnownText    string
	Glossary     string    // lines `term = translation`
	Voice        []float32 // to clone; used only with VoiceConsent
	VoiceConsent bool
	SlotMS       int32
	LimitMS      int32
	Fit          string // natural, tight, strict
	FaceID       int32
}

// Languages of a stream, and how its mouths come.
type Languages struct {
	Source      string // ISO 639-1, or auto
	Target      string
	MouthFormat string // jpeg unless given, or raw
}

// Position is the place of a request in its stream.
type Position struct {
	SequenceID int64
	Start, End bool
	Timeout    time.Duration
	Replaces   int64 // the speaker's stream before, where that was lost; 0: none
}

// InferRequest is a segment as a message.
func InferRequest(id string, segment Segment, languages Languages, position Position) *inference.ModelInferRequest {
	request := &inference.ModelInferRequest{
		ModelName: "dub",
		Id:        id,
		Parameters: map[string]*inference.InferParameter{
			"sequence_id":    int64Parameter(position.SequenceID),
			"sequence_start": boolParameter(position.Start),
			"sequence_end":   boolParameter(position.End),
			"timeout":        int64Parameter(position.Timeout.Microseconds()),
		},
	}
	if position.Replaces != 0 {
		request.Parameters["replaces"] = int64Parameter(position.Replaces)
	}
	for _, tensor := range inputs(segment, languages) {
		head := &inference.ModelInferRequest_InferInputTensor{
			Name: tensor.Name, Datatype: tensor.Datatype, Shape: tensor.Shape,
		}
		request.Inputs = append(request.Inputs, head)
		request.RawInputContents = append(request.RawInputContents, tensor.Raw)
	}
	return request
}

func inputs(segment Segment, languages Languages) []Tensor {
	tensors := []Tensor{
		float32Tensor("AUDIO", segment.Audio),
		textTensor("SOURCE_LANGUAGE", languages.Source),
		textTensor("TARGET_LANGUAGE", languages.Target),
		bytesTensor("FRAMES", segment.Frames...),
		int64Tensor("FRAME_MS", segment.FrameMS...),
	}
	addText := func(name, value string) {
		if value != "" {
			tensors = append(tensors, textTensor(name, value))
		}
	}
	addNumber := func(name string, value int32) {
		if value != 0 {
			tensors = append(tensors, int32Tensor(name, value))
		}
	}
	if segment.AudioMS != nil {
		tensors = append(tensors, int64Tensor("AUDIO_MS", *segment.AudioMS))
	}
	addText("CONTEXT", segment.Context)
	addText("KNOWN_TEXT", segment.KnownText)
	addText("GLOSSARY", segment.Glossary)
	if len(segment.Voice) > 0 {
		tensors = append(tensors, float32Tensor("VOICE", segment.Voice))
	}
	if segment.VoiceConsent {
		tensors = append(tensors, trueTensor("VOICE_CONSENT"))
	}
	addNumber("SLOT_MS", segment.SlotMS)
	addNumber("LIMIT_MS", segment.LimitMS)
	addText("FIT", segment.Fit)
	addNumber("FACE_ID", segment.FaceID)
	addText("MOUTH_FORMAT", languages.MouthFormat)
	return tensors
}

// Answer is what came back for a segment.
type Answer struct {
	Status           string // docs/protocol.md has the table
	Message          string
	MoveMS           int32 // above 0: END this stream and START another within so long
	SourceText       string
	TargetText       string
	DetectedLanguage string
	Audio            []float32 // mono
	SampleRateHz     int32
	SpeakerID        int32 // track that got the mouths; 0: none
	TrackIDs         []int32
	MouthFrames      []int32           // index of the frame of each mouth
	MouthBoxes       [][]int32         // left, top, right, bottom
	Mouths           [][]byte          // BGR, MouthSize squared; empty in format jpeg
	MouthsJPEG       [][]byte          // empty in format raw
	Outputs          map[string]Tensor // all, by name
}

// MouthSize is the width and height of a mouth in pixels.
const MouthSize = 96

// ReadAnswer reads what a response says. The error wraps ErrInput where it is no answer of dub.
func ReadAnswer(response *inference.ModelInferResponse) (*Answer, error) {
	read := reader{outputs: readTensors(response)}
	answer := &Answer{
		Status:           read.text("STATUS"),
		Message:          read.text("MESSAGE"),
		MoveMS:           read.number("MOVE_MS"),
		SourceText:       read.text("SOURCE_TEXT"),
		TargetText:       read.text("TARGET_TEXT"),
		DetectedLanguage: read.text("DETECTED_LANGUAGE"),
		Audio:            read.find("AUDIO_OUT").Float32s(),
		SampleRateHz:     read.number("SAMPLE_RATE_HZ"),
		SpeakerID:        read.number("SPEAKER_ID"),
		TrackIDs:         read.find("TRACK_IDS").Int32s(),
		MouthFrames:      read.find("MOUTH_FRAMES").Int32s(),
		MouthBoxes:       [][]int32{},
		Mouths:           [][]byte{},
		MouthsJPEG:       read.bytes("MOUTHS_JPEG"),
		Outputs:          read.outputs,
	}
	for boxes := read.find("MOUTH_BOXES").Int32s(); len(boxes) >= 4; boxes = boxes[4:] {
		answer.MouthBoxes = append(answer.MouthBoxes, boxes[:4])
	}
	const size = MouthSize * MouthSize * 3
	for mouths := read.find("MOUTHS").Raw; len(mouths) >= size; mouths = mouths[size:] {
		answer.Mouths = append(answer.Mouths, mouths[:size])
	}
	return answer, read.err
}

// reader keeps the first error.
type reader struct {
	outputs map[string]Tensor
	err     error
}

func (r *reader) find(name string) Tensor {
	tensor, found := r.outputs[name]
	if !found && r.err == nil {
		r.err = inputError("the answer has no %s; it is not one of the model dub", name)
	}
	return tensor
}

func (r *reader) bytes(name string) [][]byte {
	elements, err := r.find(name).Bytes()
	if err != nil && r.err == nil {
		r.err = inputError("%v", err)
	}
	return elements
}

func (r *reader) text(name string) string {
	elements := r.bytes(name)
	if len(elements) == 0 {
		return ""
	}
	return string(elements[0])
}

func (r *reader) number(name string) int32 {
	values := r.find(name).Int32s()
	if len(values) == 0 {
		return 0
	}
	return values[0]
}

func int64Parameter(value int64) *inference.InferParameter {
	return &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: value}}
}

func boolParameter(value bool) *inference.InferParameter {
	return &inference.InferParameter{ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: value}}
}

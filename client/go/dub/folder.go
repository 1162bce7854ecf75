package dub

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"regexp"
)

const speechRateHz = 16_000

// manifest is segment.json; the layout is in docs/clients.md. A field that is not there is nil.
type manifest struct {
	Audio          *string  `json:"audio"`
	Frames         []string `json:"frames"`
	FrameMS        []int64  `json:"frame_ms"`
	AudioMS        *int64   `json:"audio_ms"`
	SourceLanguage *string  `json:"source_language"`
}

// ReadSegmentFolder is a segment from plain files, and its language. The error wraps ErrInput.
func ReadSegmentFolder(folder string) (Segment, string, error) {
	segment, language, err := readFolder(folder)
	if err != nil {
		return Segment{}, "", inputError("%s: is no segment folder (%v); make one with: polylip segment CLIP -o FOLDER", folder, err)
	}
	return segment, language, nil
}

func readFolder(folder string) (Segment, string, error) {
	var listed manifest
	text, err := os.ReadFile(filepath.Join(folder, "segment.json"))
	if err != nil {
		return Segment{}, "", err
	}
	if err := json.Unmarshal(text, &listed); err != nil {
		return Segment{}, "", err
	}
	if listed.Audio == nil || listed.Frames == nil || listed.FrameMS == nil || listed.AudioMS == nil ||
		listed.SourceLanguage == nil {
		return Segment{}, "", errors.New("segment.json needs audio, frames, frame_ms, audio_ms and source_language")
	}
	wave, err := os.ReadFile(filepath.Join(folder, *listed.Audio))
	if err != nil {
		return Segment{}, "", err
	}
	segment := Segment{FrameMS: listed.FrameMS, AudioMS: listed.AudioMS}
	if segment.Audio, err = readWAV(wave); err != nil {
		return Segment{}, "", err
	}
	for _, name := range listed.Frames {
		frame, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return Segment{}, "", err
		}
		segment.Frames = append(segment.Frames, frame)
	}
	return segment, *listed.SourceLanguage, nil
}

// readWAV has the samples of mono sound with 16 bits and 16 kHz.
func readWAV(file []byte) ([]float32, error) {
	if len(file) < 12 || string(file[:4]) != "RIFF" || string(file[8:12]) != "WAVE" {
		return nil, errors.New("the sound is no WAV file")
	}
	usable := false
	for rest := file[12:]; len(rest) >= 8; {
		name, size := string(rest[:4]), int64(binary.LittleEndian.Uint32(rest[4:]))
		rest = rest[8:]
		body := rest
		if size < int64(len(rest)) {
			body = rest[:size]
		}
		if name == "fmt " && len(body) >= 16 {
			format, channels := binary.LittleEndian.Uint16(body), binary.LittleEndian.Uint16(body[2:])
			rateHz, bits := binary.LittleEndian.Uint32(body[4:]), binary.LittleEndian.Uint16(body[14:])
			usable = format == 1 && channels == 1 && rateHz == speechRateHz && bits == 16
		}
		if name == "data" && usable {
			samples := make([]float32, len(body)/2)
			for index := range samples {
				samples[index] = float32(int16(binary.LittleEndian.Uint16(body[2*index:]))) / 32768
			}
			return samples, nil
		}
		if skip := size + size%2; skip < int64(len(rest)) {
			rest = rest[skip:]
		} else {
			rest = nil
		}
	}
	return nil, fmt.Errorf("the sound is not mono with 16 bits and %d Hz", speechRateHz)
}

// fields is answer.json, in the order of the names, so that two clients write the same bytes.
type fields struct {
	DetectedLanguage string    `json:"detected_language"`
	Message          string    `json:"message"`
	MouthBoxes       [][]int32 `json:"mouth_boxes"`
	MouthFrames      []int32   `json:"mouth_frames"`
	MoveMS           int32     `json:"move_ms"`
	SampleRateHz     int32     `json:"sample_rate_hz"`
	Samples          int       `json:"samples"`
	SourceText       string    `json:"source_text"`
	SpeakerID        int32     `json:"speaker_id"`
	Status           string    `json:"status"`
	TargetText       string    `json:"target_text"`
	TrackIDs         []int32   `json:"track_ids"`
}

// WriteAnswer writes answer.json, voice.wav, and the mouths as mouth-00000.png or .jpg, in place of an answer that is
// there. The error wraps ErrInput.
func WriteAnswer(answer *Answer, folder string) error {
	if err := writeFolder(answer, folder); err != nil {
		return inputError("%s: cannot be written (%v); name another folder", folder, err)
	}
	return nil
}

func writeFolder(answer *Answer, folder string) error {
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	if err := removeAnswer(folder); err != nil {
		return err
	}
	write := func(name string, data []byte) error { return os.WriteFile(filepath.Join(folder, name), data, 0o666) }
	if err := write("voice.wav", wav(answer.Audio, answer.SampleRateHz)); err != nil {
		return err
	}
	for index, bgr := range answer.Mouths {
		picture, err := pngOf(bgr)
		if err != nil {
			return err
		}
		if err := write(fmt.Sprintf("mouth-%05d.png", index), picture); err != nil {
			return err
		}
	}
	for index, picture := range answer.MouthsJPEG {
		if err := write(fmt.Sprintf("mouth-%05d.jpg", index), picture); err != nil {
			return err
		}
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text) // it ends with a newline
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(fields{
		answer.DetectedLanguage, answer.Message, answer.MouthBoxes, answer.MouthFrames, answer.MoveMS,
		answer.SampleRateHz, len(answer.Audio), answer.SourceText, answer.SpeakerID, answer.Status,
		answer.TargetText, answer.TrackIDs,
	})
	if err != nil {
		return err
	}
	return write("answer.json", text.Bytes())
}

var ofAnswer = regexp.MustCompile(`^(answer\.json|voice\.wav|mouth-\d+\.(png|jpg))$`)

// removeAnswer removes an answer that is there: it may have more mouths, or others.
func removeAnswer(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if ofAnswer.MatchString(entry.Name()) {
			if err := os.Remove(filepath.Join(folder, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func wav(audio []float32, rateHz int32) []byte {
	var file bytes.Buffer
	put := func(values ...interface{}) {
		for _, value := range values {
			_ = binary.Write(&file, binary.LittleEndian, value) // to memory: it cannot fail
		}
	}
	size := uint32(2 * len(audio))
	put([]byte("RIFF"), 36+size, []byte("WAVEfmt "), uint32(16))       // bytes of the format that follow
	put(uint16(1), uint16(1), rateHz, 2*rateHz, uint16(2), uint16(16)) // PCM, channels, ..., bits
	put([]byte("data"), size)
	samples := make([]int16, len(audio))
	for index, value := range audio {
		sample := math.Floor(float64(value)*32767 + 0.5)
		samples[index] = int16(math.Max(-32768, math.Min(32767, sample)))
	}
	put(samples)
	return file.Bytes()
}

func pngOf(bgr []byte) ([]byte, error) {
	picture := image.NewRGBA(image.Rect(0, 0, MouthSize, MouthSize)) // written as RGB, as it is opaque
	for pixel := 0; pixel < MouthSize*MouthSize; pixel++ {
		from, to := bgr[3*pixel:], picture.Pix[4*pixel:]
		to[0], to[1], to[2], to[3] = from[2], from[1], from[0], 0xff
	}
	var file bytes.Buffer
	err := png.Encode(&file, picture)
	return file.Bytes(), err
}

package dub

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"polylip/inference"
)

// Tensor is one input or output: raw contents, little-endian, as in docs/protocol.md.
type Tensor struct {
	Name     string
	Datatype string
	Shape    []int64
	Raw      []byte
}

func float32Tensor(name string, values []float32) Tensor {
	raw := make([]byte, 4*len(values))
	for index, value := range values {
		binary.LittleEndian.PutUint32(raw[4*index:], math.Float32bits(value))
	}
	return Tensor{name, "FP32", []int64{int64(len(values))}, raw}
}

func int32Tensor(name string, value int32) Tensor {
	raw := make([]byte, 4)
	binary.LittleEndian.PutUint32(raw, uint32(value))
	return Tensor{name, "INT32", []int64{1}, raw}
}

func int64Tensor(name string, values ...int64) Tensor {
	raw := make([]byte, 8*len(values))
	for index, value := range values {
		binary.LittleEndian.PutUint64(raw[8*index:], uint64(value))
	}
	return Tensor{name, "INT64", []int64{int64(len(values))}, raw}
}

func trueTensor(name string) Tensor { return Tensor{name, "BOOL", []int64{1}, []byte{1}} }

// bytesTensor has for each element its length, a uint32, and as many bytes.
func bytesTensor(name string, elements ...[]byte) Tensor {
	var raw bytes.Buffer
	for _, element := range elements {
		var length [4]byte
		binary.LittleEndian.PutUint32(length[:], uint32(len(element)))
		raw.Write(length[:])
		raw.Write(element)
	}
	return Tensor{name, "BYTES", []int64{int64(len(elements))}, raw.Bytes()}
}

func textTensor(name, value string) Tensor { return bytesTensor(name, []byte(value)) }

// Float32s are the elements of an FP32 tensor.
func (t Tensor) Float32s() []float32 {
	values := make([]float32, len(t.Raw)/4)
	for index := range values {
		values[index] = math.Float32frombits(binary.LittleEndian.Uint32(t.Raw[4*index:]))
	}
	return values
}

// Int32s are the elements of an INT32 tensor.
func (t Tensor) Int32s() []int32 {
	values := make([]int32, len(t.Raw)/4)
	for index := range values {
		values[index] = int32(binary.LittleEndian.Uint32(t.Raw[4*index:]))
	}
	return values
}

// Bytes are the elements of a BYTES tensor.
func (t Tensor) Bytes() ([][]byte, error) {
	elements := [][]byte{}
	for rest := t.Raw; len(rest) > 0; {
		if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.LittleEndian.Uint32(rest)) {
			return nil, fmt.Errorf("%s ends within an element", t.Name)
		}
		end := 4 + int(binary.LittleEndian.Uint32(rest))
		elements = append(elements, rest[4:end])
		rest = rest[end:]
	}
	return elements, nil
}

func readTensors(response *inference.ModelInferResponse) map[string]Tensor {
	tensors := make(map[string]Tensor, len(response.Outputs))
	for index, output := range response.Outputs {
		var raw []byte
		if index < len(response.RawOutputContents) {
			raw = response.RawOutputContents[index]
		}
		tensors[output.Name] = Tensor{output.Name, output.Datatype, output.Shape, raw}
	}
	return tensors
}

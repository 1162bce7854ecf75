// The service of client/protocol/grpc_service.proto, and a dub segment and its answer as messages of it.

import { fileURLToPath } from "node:url";

import { loadPackageDefinition, type ServiceClientConstructor } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import { InputError } from "./errors.js";
import { bool, bytes, float32, int32, int64, readBytes, readFloat32, readInt32, readText, text } from "./tensors.js";
import type { Datatype, Tensor } from "./tensors.js";

const PROTO = fileURLToPath(new URL("grpc_service.proto", import.meta.url)); // copied by `npm run build`

interface Parameter {
  int64_param?: string;
  bool_param?: boolean;
}

interface TensorHead {
  name: string;
  datatype: string;
  shape: (number | string)[]; // int64: strings when read
}

/** A ModelInferRequest. */
export interface InferRequest {
  model_name: string;
  id: string;
  parameters: Record<string, Parameter>;
  inputs: TensorHead[];
  raw_input_contents: Uint8Array[];
}

/** A ModelInferResponse. */
export interface InferResponse {
  id: string;
  parameters: Record<string, Parameter>;
  outputs: TensorHead[];
  raw_output_contents: Uint8Array[];
}

/** A ModelStreamInferResponse. */
export interface StreamResponse {
  error_message: string;
  infer_response: InferResponse | null;
}

const definition = loadSync(PROTO, { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true });

export const Service = (
  loadPackageDefinition(definition) as unknown as {
    inference: { GRPCInferenceService: ServiceClientConstructor };
  }
).inference.GRPCInferenceService;

export type ServiceClient = InstanceType<typeof Service>;

export type MouthFormat = "jpeg" | "raw";
export type Fit = "natural" | "tight" | "strict";

/** What somebody said, and the picture of it. */
export interface Segment {
  readonly audio: Float32Array; // mono, 16 kHz, -1 to 1
  readonly frames: readonly Uint8Array[]; // JPEG, 640x360
  readonly frameMs: readonly number[]; // of each frame, on the stream's clock
  readonly audioMs?: number; // of the first sample; the first frame's unless given
  readonly context?: string;
  readonly knownText?: string;
  readonly glossary?: string; // lines `term = translation`
  readonly voice?: Float32Array; // to clone; used only with voiceConsent
  readonly voiceConsent?: boolean;
  readonly slotMs?: number;
  readonly limitMs?: number;
  readonly fit?: Fit;
  readonly faceId?: number;
}

export interface Options {
  readonly sourceLanguage: string; // ISO 639-1, or `auto`
  readonly targetLanguage: string;
  readonly mouthFormat?: MouthFormat; // jpeg unless given
}

/** Place of a request in its stream. */
export interface Position {
  readonly sequenceId: bigint;
  readonly start: boolean;
  readonly end: boolean;
  readonly timeoutMs: number;
  readonly replaces?: bigint; // the speaker's stream before, where that was lost
}

export const EMPTY: Segment = { audio: new Float32Array(), frames: [], frameMs: [] };

function inputs(segment: Segment, options: Options): Tensor[] {
  const tensors = [
    float32("AUDIO", segment.audio),
    text("SOURCE_LANGUAGE", options.sourceLanguage),
    text("TARGET_LANGUAGE", options.targetLanguage),
    bytes("FRAMES", segment.frames),
    int64("FRAME_MS", segment.frameMs),
  ];
  const add = <T>(name: string, value: T | undefined, make: (name: string, value: T) => Tensor): void => {
    if (value !== undefined) {
      tensors.push(make(name, value));
    }
  };
  add("AUDIO_MS", segment.audioMs, (name, value) => int64(name, [value]));
  add("CONTEXT", segment.context, text);
  add("KNOWN_TEXT", segment.knownText, text);
  add("GLOSSARY", segment.glossary, text);
  add("VOICE", segment.voice, float32);
  add("VOICE_CONSENT", segment.voiceConsent, bool);
  add("SLOT_MS", segment.slotMs, int32);
  add("LIMIT_MS", segment.limitMs, int32);
  add("FIT", segment.fit, text);
  add("FACE_ID", segment.faceId, int32);
  add("MOUTH_FORMAT", options.mouthFormat, text);
  return tensors;
}

export function inferRequest(id: string, segment: Segment, options: Options, position: Position): InferRequest {
  const tensors = inputs(segment, options);
  const parameters: Record<string, Parameter> = {
    sequence_id: { int64_param: position.sequenceId.toString() },
    sequence_start: { bool_param: position.start },
    sequence_end: { bool_param: position.end },
    timeout: { int64_param: String(Math.round(position.timeoutMs * 1000)) },
  };
  if (position.replaces !== undefined) {
    parameters["replaces"] = { int64_param: position.replaces.toString() };
  }
  return {
    model_name: "dub",
    id,
    parameters,
    inputs: tensors.map(({ name, datatype, shape }) => ({ name, datatype, shape: [...shape] })),
    raw_input_contents: tensors.map((tensor) => tensor.raw),
  };
}

/** What came back for a segment. */
export interface Answer {
  readonly status: string; // docs/protocol.md has the table
  readonly message: string;
  readonly moveMs: number; // above 0: END this stream and START another within so long
  readonly sourceText: string;
  readonly targetText: string;
  readonly detectedLanguage: string;
  readonly audio: Float32Array; // mono
  readonly sampleRateHz: number;
  readonly speakerId: number; // track that got the mouths; 0: none
  readonly trackIds: readonly number[];
  readonly mouthFrames: readonly number[]; // index of the frame of each mouth
  readonly mouthBoxes: readonly (readonly number[])[]; // left, top, right, bottom
  readonly mouths: readonly Uint8Array[]; // BGR, MOUTH_SIZE squared; empty in format jpeg
  readonly mouthsJpeg: readonly Uint8Array[]; // empty in format raw
  readonly outputs: ReadonlyMap<string, Tensor>; // all, by name
}

export const MOUTH_SIZE = 96; // pixels
const MOUTH_BYTES = MOUTH_SIZE * MOUTH_SIZE * 3;

/** Raises InputError where it is no answer of `dub`. */
export function readAnswer(response: InferResponse): Answer {
  const outputs = new Map<string, Tensor>();
  response.outputs.forEach(({ name, datatype, shape }, index) => {
    const raw = response.raw_output_contents[index] ?? new Uint8Array();
    outputs.set(name, { name, datatype: datatype as Datatype, shape: shape.map(Number), raw });
  });
  const find = (name: string): Tensor => {
    const tensor = outputs.get(name);
    if (tensor === undefined) {
      throw new InputError(`the answer has no ${name}; it is not one of the model dub`);
    }
    return tensor;
  };
  const first = (name: string): number => readInt32(find(name))[0] ?? 0;
  return {
    status: readText(find("STATUS")),
    message: readText(find("MESSAGE")),
    moveMs: first("MOVE_MS"),
    sourceText: readText(find("SOURCE_TEXT")),
    targetText: readText(find("TARGET_TEXT")),
    detectedLanguage: readText(find("DETECTED_LANGUAGE")),
    audio: readFloat32(find("AUDIO_OUT")),
    sampleRateHz: first("SAMPLE_RATE_HZ"),
    speakerId: first("SPEAKER_ID"),
    trackIds: readInt32(find("TRACK_IDS")),
    mouthFrames: readInt32(find("MOUTH_FRAMES")),
    mouthBoxes: pieces(readInt32(find("MOUTH_BOXES")), 4),
    mouths: pieces(find("MOUTHS").raw, MOUTH_BYTES),
    mouthsJpeg: readBytes(find("MOUTHS_JPEG")),
    outputs,
  };
}

function pieces<T extends { length: number; slice(start: number, end: number): T }>(whole: T, size: number): T[] {
  return Array.from({ length: whole.length / size }, (_, index) => whole.slice(index * size, (index + 1) * size));
}

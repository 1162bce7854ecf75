// The library: a stream of `dub`, its segments, answers and errors.

export { credentials } from "@grpc/grpc-js";
export { DubError, InputError, readError, type ErrorCode } from "./errors.js";
export { readSegmentFolder, writeAnswer, type SegmentFolder } from "./folder.js";
export { EMPTY, type Answer, type Fit, type MouthFormat, type Options, type Segment } from "./messages.js";
export { DubStream, newSequenceId, type StreamOptions } from "./stream.js";
export { readBytes, readFloat32, readInt32, readText, type Tensor } from "./tensors.js";

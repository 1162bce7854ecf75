// A segment as plain files in, an answer as plain files out. The layout is in docs/clients.md.

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";

import { PNG } from "pngjs";

import { InputError } from "./errors.js";
import { MOUTH_SIZE } from "./messages.js";
import type { Answer, Segment } from "./messages.js";

const SPEECH_RATE_HZ = 16_000;
const WAV_HEADER_BYTES = 44;
const OF_ANSWER = /^(answer\.json|voice\.wav|mouth-\d+\.(png|jpg))$/;

export interface SegmentFolder {
  readonly segment: Segment;
  readonly sourceLanguage: string;
}

interface Manifest {
  audio: string;
  frames: string[];
  frame_ms: number[];
  audio_ms: number;
  source_language: string;
}

/** Raises InputError. */
export function readSegmentFolder(folder: string): SegmentFolder {
  try {
    const manifest = checked(JSON.parse(readFileSync(join(folder, "segment.json"), "utf-8")));
    return {
      segment: {
        audio: readWav(readFileSync(join(folder, manifest.audio))),
        frames: manifest.frames.map((name) => readFileSync(join(folder, name))),
        frameMs: manifest.frame_ms,
        audioMs: manifest.audio_ms,
      },
      sourceLanguage: manifest.source_language,
    };
  } catch (error) {
    const remedy = "make one with: polylip segment CLIP -o FOLDER";
    throw new InputError(`${folder}: is no segment folder (${oneLine(error)}); ${remedy}`);
  }
}

function checked(read: unknown): Manifest {
  const manifest = read as Partial<Manifest>;
  const lists = Array.isArray(manifest.frames) && Array.isArray(manifest.frame_ms);
  if (!lists || typeof manifest.audio !== "string" || typeof manifest.source_language !== "string") {
    throw new Error("segment.json needs audio, frames, frame_ms and source_language");
  }
  if (![manifest.audio_ms, ...manifest.frame_ms!].every(Number.isSafeInteger)) {
    throw new Error("audio_ms and frame_ms are whole numbers");
  }
  return manifest as Manifest;
}

/** Samples of mono sound with 16 bits and 16 kHz. */
function readWav(file: Buffer): Float32Array {
  if (file.toString("latin1", 0, 4) !== "RIFF" || file.toString("latin1", 8, 12) !== "WAVE") {
    throw new Error("the sound is no WAV file");
  }
  let usable = false;
  for (let at = 12; at + 8 <= file.length; ) {
    const [name, start, size] = [file.toString("latin1", at, at + 4), at + 8, file.readUInt32LE(at + 4)];
    if (name === "fmt ") {
      const [format, channels] = [file.readUInt16LE(start), file.readUInt16LE(start + 2)];
      const [rateHz, bits] = [file.readUInt32LE(start + 4), file.readUInt16LE(start + 14)];
      usable = format === 1 && channels === 1 && rateHz === SPEECH_RATE_HZ && bits === 16;
    }
    if (name === "data" && usable) {
      const count = Math.min(size, file.length - start) >> 1;
      return Float32Array.from({ length: count }, (_, index) => file.readInt16LE(start + 2 * index) / 32768);
    }
    at = start + size + (size % 2);
  }
  throw new Error(`the sound is not mono with 16 bits and ${SPEECH_RATE_HZ} Hz`);
}

/**
 * answer.json, voice.wav, and the mouths as mouth-00000.png or .jpg, in place of an answer that is there.
 * Raises InputError.
 */
export function writeAnswer(answer: Answer, folder: string): void {
  const mouth = (index: number, ending: string): string =>
    join(folder, `mouth-${String(index).padStart(5, "0")}.${ending}`);
  try {
    makeFolder(resolve(folder));
    // An answer that is there may have more mouths, or others.
    readdirSync(folder)
      .filter((name) => OF_ANSWER.test(name))
      .forEach((name) => rmSync(join(folder, name)));
    writeFileSync(join(folder, "voice.wav"), wav(answer.audio, answer.sampleRateHz));
    answer.mouths.forEach((bgr, index) => writeFileSync(mouth(index, "png"), png(bgr)));
    answer.mouthsJpeg.forEach((jpeg, index) => writeFileSync(mouth(index, "jpg"), jpeg));
    writeFileSync(join(folder, "answer.json"), JSON.stringify(fields(answer), null, 2) + "\n");
  } catch (error) {
    throw new InputError(`${folder}: cannot be written (${oneLine(error)}); name another folder`);
  }
}

/** mkdirSync with `recursive` never ends where a folder that is there lets none be made in it: /proc (Node 20). */
function makeFolder(folder: string): void {
  if (!existsSync(folder)) {
    makeFolder(dirname(folder));
    mkdirSync(folder);
  }
}

/** In the order of their names, so that two clients write the same bytes. */
function fields(answer: Answer): object {
  return {
    detected_language: answer.detectedLanguage,
    message: answer.message,
    mouth_boxes: answer.mouthBoxes,
    mouth_frames: answer.mouthFrames,
    move_ms: answer.moveMs,
    sample_rate_hz: answer.sampleRateHz,
    samples: answer.audio.length,
    source_text: answer.sourceText,
    speaker_id: answer.speakerId,
    status: answer.status,
    target_text: answer.targetText,
    track_ids: answer.trackIds,
  };
}

function wav(audio: Float32Array, rateHz: number): Buffer {
  const file = Buffer.alloc(WAV_HEADER_BYTES + 2 * audio.length);
  file.write("RIFF", 0, "latin1");
  file.writeUInt32LE(file.length - 8, 4);
  file.write("WAVEfmt ", 8, "latin1");
  file.writeUInt32LE(16, 16); // bytes of the format that follow
  file.writeUInt16LE(1, 20); // PCM
  file.writeUInt16LE(1, 22); // channels
  file.writeUInt32LE(rateHz, 24);
  file.writeUInt32LE(2 * rateHz, 28);
  file.writeUInt16LE(2, 32);
  file.writeUInt16LE(16, 34); // bits
  file.write("data", 36, "latin1");
  file.writeUInt32LE(2 * audio.length, 40);
  audio.forEach((value, index) => {
    const sample = Math.max(-32768, Math.min(32767, Math.floor(value * 32767 + 0.5)));
    file.writeInt16LE(sample, WAV_HEADER_BYTES + 2 * index);
  });
  return file;
}

function png(bgr: Uint8Array): Buffer {
  const picture = new PNG({ width: MOUTH_SIZE, height: MOUTH_SIZE });
  const rgb = Buffer.from(bgr);
  for (let at = 0; at < rgb.length; at += 3) {
    [rgb[at], rgb[at + 2]] = [bgr[at + 2]!, bgr[at]!];
  }
  picture.data = rgb;
  return PNG.sync.write(picture, { colorType: 2, inputColorType: 2, inputHasAlpha: false });
}

export function oneLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n", 1)[0] ?? "";
}

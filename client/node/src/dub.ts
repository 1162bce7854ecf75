#!/usr/bin/env node
// The command: dubs a segment folder, or makes and reads the messages of the golden files.

import { X509Certificate } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createSecureContext } from "node:tls";
import { parseArgs } from "node:util";

import { credentials, type ChannelCredentials } from "@grpc/grpc-js";

import { DubError, InputError } from "./errors.js";
import { oneLine, readSegmentFolder, writeAnswer } from "./folder.js";
import { inferRequest, readAnswer, Service } from "./messages.js";
import type { Answer, InferRequest, InferResponse, MouthFormat, Position } from "./messages.js";
import { DubStream, newSequenceId } from "./stream.js";

const HELP = `Dub a segment folder: translated voice and new mouths from a tritonserver with the model dub.

  node dub.js SEGMENT_FOLDER --to es -o OUT

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
`;

const SERVER_HINT = "; start a server with: polylip serve, or check --url (its gRPC port) and the TLS options";
const UNUSABLE = 2;
const SERVER = 3;
// Statuses of docs/protocol.md.
const DONE = ["ok", "no_speech"];
const INPUT_AT_FAULT = ["bad_audio", "bad_frames", "unsupported"];
const GOLDEN_SEQUENCE = 4611686018427387905n;

interface Arguments {
  readonly folder: string | undefined;
  readonly to: string | undefined;
  readonly out: string | undefined;
  readonly url: string;
  readonly format: MouthFormat;
  readonly timeoutMs: number;
  readonly sequenceId: bigint | undefined;
  readonly streamId: string | undefined;
  readonly credentials: ChannelCredentials | undefined;
  readonly serverName: string | undefined;
  readonly writeRequest: string | undefined;
  readonly golden: boolean;
  readonly readResponse: string | undefined;
}

/** undefined: --help. */
function parse(): Arguments | undefined {
  const string = { type: "string" } as const;
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      to: string,
      out: { type: "string", short: "o" },
      url: string,
      format: string,
      timeout: string,
      "sequence-id": string,
      "stream-id": string,
      "tls-ca": string,
      "tls-cert": string,
      "tls-key": string,
      "tls-server-name": string,
      "write-request": string,
      golden: { type: "boolean" },
      "read-response": string,
      help: { type: "boolean", short: "h" },
    },
  });
  if (values.help) {
    return undefined;
  }
  const { format = "raw", timeout = "30", "sequence-id": sequenceId } = values;
  if (format !== "raw" && format !== "jpeg") {
    throw new InputError(`--format ${format}: give raw or jpeg`);
  }
  if (!(Number(timeout) > 0)) {
    throw new InputError(`--timeout ${timeout}: give seconds above 0`);
  }
  if (sequenceId !== undefined && (!/^\d+$/.test(sequenceId) || BigInt.asIntN(64, BigInt(sequenceId)) <= 0n)) {
    throw new InputError(`--sequence-id ${sequenceId}: give a whole number from 1 to 2^63-1`);
  }
  const streamId = values["stream-id"];
  if (streamId !== undefined && !/^[!-~]{1,128}$/.test(streamId)) {
    throw new InputError("--stream-id: give 1 to 128 letters, digits and signs without spaces");
  }
  if (positionals.length > 1) {
    throw new InputError("give one segment folder");
  }
  return {
    folder: positionals[0],
    to: values.to,
    out: values.out,
    url: values.url ?? "127.0.0.1:8001",
    format,
    timeoutMs: 1000 * Number(timeout),
    sequenceId: sequenceId === undefined ? undefined : BigInt(sequenceId),
    streamId,
    credentials: tls(values["tls-ca"], values["tls-cert"], values["tls-key"]),
    serverName: values["tls-server-name"],
    writeRequest: values["write-request"],
    golden: values.golden ?? false,
    readResponse: values["read-response"],
  };
}

function tls(ca?: string, certificate?: string, key?: string): ChannelCredentials | undefined {
  if ((certificate === undefined) !== (key === undefined)) {
    throw new InputError("--tls-cert and --tls-key belong together: give both, or neither");
  }
  if (ca === undefined && certificate === undefined) {
    return undefined;
  }
  const read = (path?: string): Buffer | null => (path === undefined ? null : readFileSync(path));
  try {
    const [authority, secret, own] = [read(ca), read(key), read(certificate)];
    if (authority !== null) {
      new X509Certificate(authority); // throws where it is none; gRPC would only trust nobody
    }
    createSecureContext({ key: secret ?? undefined, cert: own ?? undefined }); // the same for a pair
    return credentials.createSsl(authority, secret, own);
  } catch (error) {
    throw new InputError(`the TLS files cannot be used (${oneLine(error)}); give PEM files of one pair`);
  }
}

async function run(given: Arguments): Promise<number> {
  if (given.readResponse !== undefined) {
    return finish(readResponse(given.readResponse), needed(given.out, "-o OUT"));
  }
  const { segment, sourceLanguage } = readSegmentFolder(needed(given.folder, "a segment folder"));
  const options = { sourceLanguage, targetLanguage: needed(given.to, "--to LANGUAGE"), mouthFormat: given.format };
  if (given.writeRequest !== undefined) {
    const position: Position = {
      sequenceId: given.golden ? GOLDEN_SEQUENCE : (given.sequenceId ?? newSequenceId()),
      start: true,
      end: true,
      timeoutMs: given.timeoutMs,
    };
    writeRequest(given.writeRequest, inferRequest(given.golden ? "golden" : "1", segment, options, position));
    return 0;
  }
  const out = needed(given.out, "-o OUT");
  const stream = await DubStream.open(given.url, {
    ...options,
    timeoutMs: given.timeoutMs,
    ...(given.sequenceId === undefined ? {} : { sequenceId: given.sequenceId }),
    ...(given.streamId === undefined ? {} : { streamId: given.streamId }),
    ...(given.credentials === undefined ? {} : { credentials: given.credentials }),
    ...(given.serverName === undefined ? {} : { serverName: given.serverName }),
  });
  try {
    return finish(await stream.send(segment, true), out);
  } finally {
    await stream.close();
  }
}

function finish(answer: Answer, out: string): number {
  writeAnswer(answer, out);
  if (DONE.includes(answer.status)) {
    console.log(`${out}: ${answer.status}, ${answer.audio.length} samples, ${answer.mouthFrames.length} mouths`);
    return 0;
  }
  complain(`the server answered ${answer.status}: ${answer.message}`);
  return INPUT_AT_FAULT.includes(answer.status) ? UNUSABLE : SERVER;
}

function writeRequest(path: string, request: InferRequest): void {
  try {
    writeFileSync(path, Service.service["ModelInfer"]!.requestSerialize(request));
  } catch (error) {
    throw new InputError(`${path}: cannot be written (${oneLine(error)}); name another file`);
  }
}

function readResponse(path: string): Answer {
  try {
    return readAnswer(Service.service["ModelInfer"]!.responseDeserialize(readFileSync(path)) as InferResponse);
  } catch (error) {
    throw new InputError(`${path}: is no serialised ModelInferResponse of dub (${oneLine(error)})`);
  }
}

function needed(value: string | undefined, what: string): string {
  if (value === undefined) {
    throw new InputError(`give ${what}; --help shows how`);
  }
  return value;
}

function complain(message: string): void {
  console.error(`polylip: ${message}`);
}

async function main(): Promise<number> {
  try {
    const given = parse();
    if (given === undefined) {
      process.stdout.write(HELP);
      return 0;
    }
    return await run(given);
  } catch (error) {
    if (error instanceof DubError) {
      const wait = error.retryAfterMs ? `; try again in ${error.retryAfterMs / 1000} s` : "";
      const start = error.code === "server_lost" ? SERVER_HINT : "";
      complain(`${error.code}: ${error.message}${wait}${start}`);
      return SERVER;
    }
    if (error instanceof InputError) {
      complain(oneLine(error));
      return UNUSABLE;
    }
    if ((error as NodeJS.ErrnoException).code?.startsWith("ERR_PARSE_ARGS")) {
      complain(`${oneLine(error).split(". ", 1)[0]}; --help lists the options`);
      return UNUSABLE;
    }
    throw error; // a fault of this program: with its traceback
  }
}

process.noDeprecation = true; // grpc-js gives IP addresses as names in TLS, and Node would say so
process.exitCode = await main();

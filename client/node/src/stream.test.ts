// The parts that the command does not use: several segments at once, an end in the middle, and errors as they are read.

import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { DubError, DubStream, EMPTY, InputError, newSequenceId, readError, readSegmentFolder } from "./index.js";
import { inferRequest } from "./messages.js";

const url = process.env["POLYLIP_URL"];
const skip = url === undefined && "POLYLIP_URL names no server";
const { segment, sourceLanguage } = readSegmentFolder(
  fileURLToPath(new URL("../../protocol/golden", import.meta.url)),
);

test("errors are read as the protocol says", () => {
  const cases: [string, string, number | undefined, string][] = [
    ["in ensemble 'dub', gate: code=full retry_after_ms=2000: all is taken", "full", 2000, "all is taken"],
    ["gate: code=draining retry_after_ms=0: ask another", "draining", 0, "ask another"],
    ["gate: code=new_one: of a later server\ntraceback", "new_one", undefined, "of a later server"],
    ["inference request must specify the START flag", "sequence_lost", undefined, ""],
    ["Stub process 'gate_0' is not healthy.", "model_died", undefined, ""],
    ["[request id: 1] expected 5 inputs but got 4 inputs for model 'dub'", "bad_request", undefined, ""],
    ["unexpected shape for input 'AUDIO'", "bad_request", undefined, ""],
    ["failed to allocate", "fault", undefined, "failed to allocate"],
  ];
  for (const [text, code, retry, message] of cases) {
    const error = readError(text);
    assert.deepEqual([error.code, error.retryAfterMs, error.message], [code, retry, message || text]);
  }
});

test("what is no address is refused before anything is sent", async () => {
  for (const text of ["", "8001", "localhost", ":8001", "http://127.0.0.1:8001", "127.0.0.1:0", "a:65536", "::1:1"]) {
    const opened = DubStream.open(text, { sourceLanguage, targetLanguage: "es" });
    await assert.rejects(opened, (error) => error instanceof InputError && error.message.includes(`'${text}'`));
  }
});

test("ids have 63 bits and differ", () => {
  const ids = Array.from({ length: 1000 }, newSequenceId);
  assert.equal(new Set(ids).size, ids.length);
  assert(ids.every((id) => id > 0n && id < 2n ** 63n) && ids.some((id) => id > 2n ** 62n));
});

test("answers come in order, while the source still talks", { skip }, async () => {
  const stream = await DubStream.open(url!, { sourceLanguage, targetLanguage: "es" });
  let hear = (): void => undefined;
  const heard = new Promise<void>((resolve) => (hear = resolve));
  async function* talk(): AsyncGenerator<typeof segment> {
    yield segment;
    yield EMPTY;
    await heard; // it goes on only when both answers have come out
    yield EMPTY;
  }
  const statuses: string[] = [];
  for await (const answer of stream.dub(talk())) {
    statuses.push(answer.status);
    if (statuses.length === 2) {
      hear();
    }
  }
  assert.deepEqual(statuses, ["ok", "no_speech", "no_speech"]);
  await assert.rejects(stream.send(EMPTY), DubError);
});

test("who stops reading gives the slot back", { skip }, async () => {
  const sequenceId = newSequenceId();
  const options = { sourceLanguage, targetLanguage: "es", sequenceId };
  for await (const answer of (await DubStream.open(url!, options)).dub([EMPTY, segment, EMPTY])) {
    assert.equal(answer.status, "no_speech");
    break;
  }
  const again = await DubStream.open(url!, options); // refused as `taken` where END did not arrive
  assert.equal((await again.send(EMPTY, true)).status, "no_speech");
  await again.close();
});

test("a stream that was lost is named", () => {
  const options = { sourceLanguage, targetLanguage: "es" };
  const position = { sequenceId: 1n, start: true, end: false, timeoutMs: 1, replaces: 2n ** 62n + 1n };
  const { parameters } = inferRequest("1", EMPTY, options, position);
  assert.deepEqual(parameters["replaces"], { int64_param: "4611686018427387905" });
  assert.deepEqual(parameters["timeout"], { int64_param: "1000" });
});

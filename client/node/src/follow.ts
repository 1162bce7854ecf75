// An example of a speaker who goes on: the segment folders named on standard input go over one stream, an answer in
// JSON comes out for each, and a server that is about to stop is left for another. Exits with 3 where a segment had none.
//
//   node build/follow.js URL SOURCE_LANGUAGE TARGET_LANGUAGE [SECONDS]

import { createInterface } from "node:readline";

import { DubError, DubStream, InputError, readSegmentFolder, type StreamOptions } from "./index.js";

const [url, sourceLanguage, targetLanguage, timeoutS = "30"] = process.argv.slice(2);
if (url === undefined || sourceLanguage === undefined || targetLanguage === undefined) {
  console.error("usage: node follow.js URL SOURCE_LANGUAGE TARGET_LANGUAGE [SECONDS]");
  process.exit(2);
}
const options: StreamOptions = { sourceLanguage, targetLanguage, timeoutMs: 1000 * Number(timeoutS) };

let stream: DubStream | undefined;
let replaces: bigint | undefined; // the stream that was lost
for await (const folder of createInterface({ input: process.stdin })) {
  if (stream !== undefined && stream.moveMs > 0) {
    await stream.close();
    stream = undefined;
  }
  try {
    const { segment } = readSegmentFolder(folder);
    stream ??= await DubStream.open(url, replaces === undefined ? options : { ...options, replaces });
    const { status, targetText, moveMs } = await stream.send(segment);
    console.log(JSON.stringify({ status, target_text: targetText, move_ms: moveMs, stream: stream.streamId }));
  } catch (error) {
    if (error instanceof InputError) {
      console.error(`polylip: ${error.message}`);
      process.exitCode = 2;
      break;
    }
    if (!(error instanceof DubError)) {
      throw error;
    }
    console.log(JSON.stringify({ error: error.code, retry_after_ms: error.retryAfterMs ?? 0 }));
    process.exitCode = 3;
    replaces = stream?.sequenceId;
    await stream?.close();
    stream = undefined;
  }
}
await stream?.close();

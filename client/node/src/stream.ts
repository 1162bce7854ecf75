// One speaker's stream to `dub`: segments go out as they come, each is answered within its deadline or fails.

import { randomBytes, randomUUID } from "node:crypto";

import { credentials, Metadata, status } from "@grpc/grpc-js";
import type { ChannelCredentials, ClientDuplexStream, ServiceError } from "@grpc/grpc-js";

import { DubError, InputError, readError, readLoss } from "./errors.js";
import { EMPTY, inferRequest, readAnswer, Service } from "./messages.js";
import type { Answer, InferRequest, Options, Segment, ServiceClient, StreamResponse } from "./messages.js";

const MAX_ANSWER_BYTES = 64 * 1024 * 1024; // gRPC refuses answers over 4 MiB unless told otherwise
const CONNECT_MS = 5_000;
const CLOSE_MS = 2_000; // for a server with nothing left to answer to end the call
const TIMEOUT_MS = 30_000; // of a segment; one takes 1 to 3 s on two cores
const MAX_PORT = 65_535;
const AHEAD = 2; // segments on their way at once, in `dub`

export interface StreamOptions extends Options {
  /** credentials.createSsl(...) for TLS; none unless given. */
  readonly credentials?: ChannelCredentials;
  /** That the server's certificate must have; the host of the address unless given. */
  readonly serverName?: string;
  /** Value of the metadata `x-stream-id`: 1 to 128 printable ASCII characters without spaces. Random unless given. */
  readonly streamId?: string;
  /** Deadline of each segment, from when it is sent. */
  readonly timeoutMs?: number;
  /** Random unless given. */
  readonly sequenceId?: bigint;
  /** Id of the speaker's stream before, where that was lost: the server gives its slot back. */
  readonly replaces?: bigint;
}

interface Pending {
  readonly answer: Promise<Answer>;
  readonly resolve: (answer: Answer) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** A random id of 63 bits that is not 0. */
export function newSequenceId(): bigint {
  return randomBytes(8).readBigUInt64BE() >> 1n || 1n;
}

export class DubStream {
  readonly sequenceId: bigint;
  /** Above 0: the server is about to stop. Close this stream and open another within so many milliseconds. */
  moveMs = 0;

  private readonly pending = new Map<string, Pending>();
  private readonly ended: Promise<void>;
  private sent = 0;
  private finished = false; // END is sent
  private lost: DubError | undefined;

  /** Connects to host:port. Rejects with InputError where that is none, with DubError where no server answers. */
  static async open(url: string, options: StreamOptions): Promise<DubStream> {
    requireAddress(url);
    const client = new Service(url, options.credentials ?? credentials.createInsecure(), {
      "grpc.max_receive_message_length": MAX_ANSWER_BYTES,
      "grpc.max_send_message_length": -1,
      "grpc.enable_http_proxy": 0, // that of the environment is for the web; it knows no server on this machine
      ...(options.serverName === undefined ? {} : { "grpc.ssl_target_name_override": options.serverName }),
    });
    const streamId = options.streamId ?? randomUUID();
    const timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    const metadata = new Metadata();
    metadata.set("x-stream-id", streamId);
    try {
      await serverReady(client, url, metadata, Math.min(CONNECT_MS, timeoutMs));
    } catch (error) {
      client.close();
      throw error;
    }
    return new DubStream(client, url, metadata, streamId, timeoutMs, options);
  }

  private readonly call: ClientDuplexStream<InferRequest, StreamResponse>;

  private constructor(
    private readonly client: ServiceClient,
    private readonly url: string,
    metadata: Metadata,
    readonly streamId: string,
    private readonly timeoutMs: number,
    private readonly options: StreamOptions,
  ) {
    this.sequenceId = options.sequenceId ?? newSequenceId();
    this.call = client["ModelStreamInfer"]!(metadata) as unknown as typeof this.call;
    this.ended = new Promise((resolve) => {
      this.call.on("data", (response: StreamResponse) => this.take(response));
      this.call.on("error", (error: ServiceError) => {
        this.lose(readLoss(this.url, error));
        resolve();
      });
      this.call.on("end", () => {
        this.lose(new DubError("server_lost", `the server at ${this.url} ended the stream`));
        resolve();
      });
    });
  }

  /** Sends the next segment; `last` says END with it. Resolves with its answer, rejects with DubError. */
  send(segment: Segment, last = false): Promise<Answer> {
    if (this.lost !== undefined) {
      return Promise.reject(this.lost);
    }
    if (this.finished) {
      return Promise.reject(new DubError("sequence_lost", "the stream has ended; open another"));
    }
    const id = String(this.sent + 1);
    let settle!: Pick<Pending, "resolve" | "reject">;
    const answer = new Promise<Answer>((resolve, reject) => (settle = { resolve, reject }));
    const timer = setTimeout(() => {
      this.pending.delete(id);
      const message = `the server at ${this.url} gave no answer within ${this.timeoutMs / 1000} s`;
      settle.reject(new DubError("deadline", message));
    }, this.timeoutMs);
    this.pending.set(id, { ...settle, answer, timer });
    this.write(id, segment, last);
    return answer;
  }

  /** Answers in the order of the segments, which may still come; up to two are on their way. Closes the stream. */
  async *dub(segments: Iterable<Segment> | AsyncIterable<Segment>): AsyncGenerator<Answer, void, undefined> {
    const source = Symbol.asyncIterator in segments ? segments[Symbol.asyncIterator]() : segments[Symbol.iterator]();
    const waiting: Promise<Answer>[] = [];
    let next: Promise<IteratorResult<Segment>> | undefined; // asked for and not here yet
    let more = true;
    try {
      while (more || waiting.length > 0) {
        if (more && waiting.length < AHEAD) {
          next ??= Promise.resolve(source.next());
          next.catch(() => undefined); // told by the race, where that still runs
        }
        const oldest = waiting[0];
        const answered = oldest?.then(() => undefined, () => undefined);
        const come = await Promise.race([next, answered].filter((promise) => promise !== undefined));
        if (come === undefined) {
          yield await waiting.shift()!;
          continue;
        }
        next = undefined;
        more = !come.done;
        if (!come.done) {
          const answer = this.send(come.value);
          answer.catch(() => undefined); // it is told to who takes it, not as an unhandled rejection before
          waiting.push(answer);
        }
      }
    } finally {
      await this.close();
      Promise.resolve(source.return?.()).catch(() => undefined); // it may still wait for somebody to speak
    }
  }

  /** Says END where that was not done, half-closes and reads to the end. Never rejects. */
  async close(): Promise<void> {
    if (this.lost === undefined) {
      if (this.sent > 0 && !this.finished) {
        this.write("end", EMPTY, true); // nobody waits for its answer
      }
      this.call.end();
      // A call that is cancelled while the server writes can crash tritonserver 2.51: only where it does not end.
      await Promise.allSettled([...this.pending.values()].map(({ answer }) => answer));
      const timer = setTimeout(() => this.call.cancel(), CLOSE_MS);
      await this.ended;
      clearTimeout(timer);
    }
    this.client.close();
  }

  private write(id: string, segment: Segment, end: boolean): void {
    const start = ++this.sent === 1;
    this.finished = end;
    const { sequenceId, timeoutMs } = this;
    const { replaces } = this.options;
    const position = { sequenceId, start, end, timeoutMs, ...(start && replaces !== undefined ? { replaces } : {}) };
    this.call.write(inferRequest(id, segment, this.options, position));
  }

  private take({ error_message: message, infer_response: response }: StreamResponse): void {
    const id = response?.id ?? "";
    const pending = this.pending.get(id);
    if (pending === undefined) {
      return; // its deadline has passed, or nobody waits for it
    }
    const final = response?.parameters["triton_final_response"]?.bool_param ?? true;
    if (!message && response?.outputs.length === 0 && !final) {
      return;
    }
    this.pending.delete(id);
    clearTimeout(pending.timer);
    try {
      if (message || response === null) {
        throw readError(message);
      }
      const answer = readAnswer(response);
      this.moveMs = answer.moveMs;
      pending.resolve(answer);
    } catch (error) {
      pending.reject(error as Error);
    }
  }

  private lose(error: DubError): void {
    this.lost ??= error;
    for (const { reject, timer } of this.pending.values()) {
      clearTimeout(timer);
      reject(this.lost);
    }
    this.pending.clear();
  }
}

/** gRPC would take what is none for a name, and look for its server until the deadline. */
function requireAddress(url: string): void {
  const port = /^(?:\[[0-9A-Fa-f:.]+\]|[^\s/:[\]]+):(\d{1,5})$/.exec(url)?.[1];
  if (!(Number(port) > 0 && Number(port) <= MAX_PORT)) {
    throw new InputError(`'${url}' is not host:port, for example: 127.0.0.1:8001`);
  }
}

function serverReady(client: ServiceClient, url: string, metadata: Metadata, timeoutMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (error: ServiceError | null, reply?: { ready: boolean }): void => {
      if (error?.code === status.DEADLINE_EXCEEDED) {
        reject(new DubError("deadline", `the server at ${url} did not answer within ${timeoutMs / 1000} s`));
      } else if (error !== null) {
        reject(readLoss(url, error));
      } else if (!reply?.ready) {
        reject(new DubError("server_lost", `the tritonserver at ${url} is not ready`));
      } else {
        resolve();
      }
    };
    client["ServerReady"]!({}, metadata, { deadline: Date.now() + timeoutMs }, done);
  });
}

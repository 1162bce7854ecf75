// What can go wrong, each with a code that never changes its meaning. The tables are in docs/protocol.md.

import { status, type ServiceError } from "@grpc/grpc-js";

/** The caller's input cannot be used: a file, a language, an address. */
export class InputError extends Error {
  override readonly name = "InputError";
}

/** Of the server's own codes, or one that says how the connection failed. */
export type ErrorCode =
  | "full"
  | "draining"
  | "taken"
  | "sequence_lost"
  | "bad_request"
  | "model_died"
  | "fault"
  | "server_lost"
  | "deadline";

/** A segment without an answer. */
export class DubError extends Error {
  override readonly name = "DubError";

  constructor(
    /** One of ErrorCode, or a code that the server has and this client does not know. */
    readonly code: ErrorCode | (string & {}),
    message: string,
    /** How long to wait before another try; undefined where the server did not say. */
    readonly retryAfterMs?: number,
  ) {
    super(message);
  }
}

// What Triton itself says, which has no `code=`; first match wins.
const TRITON: readonly [RegExp, ErrorCode][] = [
  [/must specify the START flag/, "sequence_lost"],
  [/is not healthy/, "model_died"],
  [/unexpected shape for input|expected \d+ inputs but got/, "bad_request"],
];

// What is read, or no concern of a person's.
const PREFIX = /^(in ensemble '\w+', )?(\w+: code=\w+( retry_after_ms=\d+)?: )?/;

/** Reads the `error_message` of a response. */
export function readError(message: string): DubError {
  const line = message.replace(PREFIX, "").split("\n", 1)[0] ?? "";
  const code = /\bcode=([a-z_]+)/.exec(message)?.[1];
  const retry = /\bretry_after_ms=(\d+)/.exec(message)?.[1];
  const known = code ?? TRITON.find(([pattern]) => pattern.test(message))?.[1] ?? "fault";
  return new DubError(known, line, retry === undefined ? undefined : Number(retry));
}

/** The call itself has failed: everything on it is lost. */
export function readLoss(url: string, error: ServiceError): DubError {
  const line = error.details.split("\n", 1)[0]?.replace(/\W*Resolution note:\s*$/, "");
  return new DubError("server_lost", `no connection to a tritonserver at ${url} (${status[error.code]}: ${line})`);
}

// Values to tensors and back: raw contents, little-endian, as in docs/protocol.md.

import { endianness } from "node:os";

export type Datatype = "FP32" | "INT32" | "INT64" | "BOOL" | "UINT8" | "BYTES";

export interface Tensor {
  readonly name: string;
  readonly datatype: Datatype;
  readonly shape: readonly number[];
  readonly raw: Uint8Array;
}

if (endianness() !== "LE") {
  throw new Error("tensors are little-endian, and so must this machine be");
}

type Numbers = Float32Array | Int32Array | BigInt64Array;

export const float32 = (name: string, values: Float32Array): Tensor => numbers(name, "FP32", values);
export const int32 = (name: string, value: number): Tensor => numbers(name, "INT32", Int32Array.of(value));
export const int64 = (name: string, values: readonly number[]): Tensor =>
  numbers(name, "INT64", BigInt64Array.from(values, (value) => BigInt(value)));
export const text = (name: string, value: string): Tensor => bytes(name, [Buffer.from(value, "utf-8")]);

export function bool(name: string, value: boolean): Tensor {
  return { name, datatype: "BOOL", shape: [1], raw: Uint8Array.of(value ? 1 : 0) };
}

/** Each element is its length, a uint32, and as many bytes. */
export function bytes(name: string, elements: readonly Uint8Array[]): Tensor {
  const parts = elements.flatMap((element) => {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(element.length);
    return [length, element];
  });
  return { name, datatype: "BYTES", shape: [elements.length], raw: Buffer.concat(parts) };
}

function numbers(name: string, datatype: Datatype, values: Numbers): Tensor {
  const raw = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return { name, datatype, shape: [values.length], raw };
}

/** Elements of a BYTES tensor. */
export function readBytes({ name, raw }: Tensor): Buffer[] {
  const all = Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength);
  const elements: Buffer[] = [];
  for (let start = 0; start < all.length; ) {
    const end = start + 4 + (start + 4 <= all.length ? all.readUInt32LE(start) : all.length);
    if (end > all.length) {
      throw new RangeError(`${name} ends within an element`);
    }
    elements.push(all.subarray(start + 4, end));
    start = end;
  }
  return elements;
}

export const readText = (tensor: Tensor): string => readBytes(tensor)[0]?.toString("utf-8") ?? "";
export const readFloat32 = (tensor: Tensor): Float32Array => new Float32Array(aligned(tensor.raw));
export const readInt32 = (tensor: Tensor): number[] => Array.from(new Int32Array(aligned(tensor.raw)));

/** A copy: raw contents lie anywhere in their message. */
function aligned(raw: Uint8Array): ArrayBuffer {
  const copy = new ArrayBuffer(raw.byteLength);
  new Uint8Array(copy).set(raw);
  return copy;
}

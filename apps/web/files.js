/* Bytes from wherever they are: a URL, a Response, a File, memory; in Node, Bun and Deno also a path. */

/** @import * as api from "./index.d.ts" */

import { TSMError } from "./errors.js";

/* Not imported, so that no bundler looks for them. */
const builtin = globalThis.process?.getBuiltinModule;
export const threads = builtin?.("node:worker_threads");
const PIECE = 1 << 20;

/** @param {unknown} source */
export function nameOf(source) {
  return source instanceof URL || typeof source === "string" ? String(source) : "the model";
}

/** Gives the bytes to `begin`, who says where they go once their number is known, in pieces.
 * @param {api.Source} source
 * @param {Pick<api.LoadOptions, "onProgress" | "signal">} options
 * @param {(bytes: number) => Promise<(at: number, piece: Uint8Array) => Promise<unknown>>} begin */
export async function read(source, { onProgress, signal }, begin) {
  const name = nameOf(source);
  const { total, pieces } = await open(source, name, signal);
  let loaded = 0;
  /** @type {Uint8Array[]} */
  const held = []; // while nobody knows how many there are
  const write = total === undefined ? undefined : await begin(total);
  for await (const piece of naming(pieces, name, signal)) {
    signal?.throwIfAborted();
    if (total !== undefined && loaded + piece.length > total) throw differs(name, loaded + piece.length, total);
    if (write) await write(loaded, piece);
    else held.push(piece);
    loaded += piece.length;
    onProgress?.({ loaded, total });
  }
  if (total !== undefined && loaded !== total) throw differs(name, loaded, total);
  if (write) return;
  const writeHeld = await begin(loaded);
  let at = 0;
  for (const piece of held) {
    await writeHeld(at, piece);
    at += piece.length;
  }
}

/** @param {api.Source} source */
export async function readWhole(source) {
  let all = new Uint8Array();
  await read(source, {}, async (bytes) => {
    all = new Uint8Array(bytes);
    return async (at, piece) => all.set(piece, at);
  });
  return all;
}

/** @param {string} name @param {number} found @param {number} wanted */
function differs(name, found, wanted) {
  return new TSMError("io", `${name}: ${found} bytes came, wanted ${wanted}`);
}

/** @param {api.Source} source @param {string} name @param {AbortSignal} [signal]
 * @returns {Promise<{ total: number | undefined, pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array> }>} */
async function open(source, name, signal) {
  try {
    if (typeof source === "string" || source instanceof URL) {
      const fs = builtin?.("node:fs");
      const path = fs && pathOf(source);
      if (fs && path !== undefined) {
        const { size } = await fs.promises.stat(path);
        // A pipe does not say how much there is.
        return { total: size || undefined, pieces: fs.createReadStream(path, { highWaterMark: PIECE }) };
      }
      source = await fetch(source, { signal });
    }
    if (source instanceof Response) {
      if (!source.ok) throw new TSMError("io", `${name}: HTTP status ${source.status}, wanted 200`);
      const { headers, body } = source;
      const length = headers.get("content-encoding") ? null : headers.get("content-length");
      return { total: length ? Number(length) : undefined, pieces: piecesOf(body) };
    }
  } catch (error) {
    throw named(error, name, signal);
  }
  if (source instanceof Blob) return { total: source.size, pieces: piecesOf(source.stream()) };
  const bytes = ArrayBuffer.isView(source)
    ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
    : source instanceof ArrayBuffer
      ? new Uint8Array(source)
      : undefined;
  if (!bytes)
    throw new TSMError("argument", `source: found ${typeof source}, wanted a URL, a Response, a Blob or bytes`);
  return { total: bytes.length, pieces: slices(bytes) };
}

/** @param {AsyncIterable<Uint8Array> | Iterable<Uint8Array>} pieces @param {string} name
 * @param {AbortSignal} [signal] */
async function* naming(pieces, name, signal) {
  try {
    yield* pieces;
  } catch (error) {
    throw named(error, name, signal);
  }
}

/** @param {any} error @param {string} name @param {AbortSignal} [signal] */
function named(error, name, signal) {
  if (error instanceof TSMError || signal?.aborted) return error;
  const what = error.message.replace(/^[A-Z]+: (.*?), .*/, "$1"); // of Node's "ENOENT: no such file, open 'x'"
  return new TSMError("io", `${name}: ${what}`, { cause: error });
}

/** Copies: a message to a worker would take the whole buffer of a view. @param {Uint8Array} bytes */
function* slices(bytes) {
  for (let at = 0; at < bytes.length; at += PIECE) yield bytes.slice(at, at + PIECE);
}

/** @param {ReadableStream<Uint8Array> | null} stream for Safari, which does not iterate them */
async function* piecesOf(stream) {
  const reader = stream?.getReader();
  try {
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true, value: undefined };
      if (done || !value) return;
      yield value;
    }
  } finally {
    await reader?.cancel();
  }
}

/** @param {string | URL} source @returns {string | undefined} undefined: a URL to fetch */
function pathOf(source) {
  const text = String(source);
  if (text.startsWith("file:")) return builtin?.("node:url").fileURLToPath(text);
  return /^[a-z][a-z0-9+.-]+:/i.test(text) ? undefined : text;
}

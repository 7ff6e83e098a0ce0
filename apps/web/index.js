/* Text from a TSM model: index.d.ts says what each call does. */

/** @import * as api from "./index.d.ts" */
/** @import { Calls, Host } from "./hosts.js" */

import { FIELDS } from "./engine.js";
import { TSMError } from "./errors.js";
import { nameOf, read, readWhole, threads } from "./files.js";
import { Local, Remote } from "./hosts.js";

export { TSMError };

/** @typedef {{ signal?: AbortSignal, cancelled: boolean, give(text: string): void }} Way of a text to its reader */
/** @typedef {Exclude<keyof Calls, "create" | "restore" | "free" | "open" | "write" | "reserve">} Method of a stream */
/** @template {Method} M @typedef {Calls[M]["args"] extends [number, ...infer A] ? A : never} Arguments */

const SLICE_MS = 8; // half a frame: a page without a worker stays usable
const FEED_BYTES = 32; // about as long
const SCORE_BYTES = 8;
const FOLLOW_BYTES = 64; // of a text to be completed: about as long
const MOST_REWIND = 2 ** 24;
const MOST_COMPLETIONS = 16;
const encoder = new TextEncoder();
const closed = () => new TSMError("closed", "it has been closed, wanted an open one");
/** @type {FinalizationRegistry<() => void>} what nobody closed */
const forgotten = new FinalizationRegistry((free) => free());

/** @implements {api.TSM} */
export class TSM {
  #host;

  /** @private @param {Host} host @param {Calls["open"]["value"]} model */
  constructor(host, { metadata, simd }) {
    this.#host = host;
    this.metadata = metadata;
    this.simd = simd;
    forgotten.register(this, () => host.end(closed()));
  }

  /** @param {api.Source} source @param {api.LoadOptions} options */
  static async load(source, options = {}) {
    const { worker = !threads && "Worker" in globalThis, onProgress, signal, ...others } = options;
    const { wasm = best(), ...unknown } = others;
    refuse(unknown);
    /** @type {Host | undefined} */
    let host;
    const load = async () => {
      const module = await compile(wasm);
      signal?.throwIfAborted();
      const engine = (host = worker ? new Remote() : new Local());
      await engine.start(module);
      await read(source, { onProgress, signal }, async (bytes) => {
        await engine.call("reserve", bytes);
        return (at, piece) => engine.call("write", at, piece);
      });
      const opened = engine.call("open").catch(({ code, message }) => {
        throw new TSMError(code, `${nameOf(source)}: ${message}`);
      });
      return new TSM(engine, await opened);
    };
    try {
      return await abortable(signal, load);
    } catch (error) {
      host?.end(closed());
      throw error;
    }
  }

  get memoryBytes() {
    return this.#host.memoryBytes;
  }

  /** @param {api.Text} prompt @param {api.GenerateOptions} options */
  generate(prompt, { bytes, stop, signal, ...settings } = {}) {
    return new Generation(signal, async (way) => {
      const session = await this.session(settings);
      try {
        const text = bytesOf(prompt);
        await session.feed(text, { signal });
        return { ...(await session.draw({ bytes, stop }, way)), promptBytes: text.length };
      } finally {
        session.close();
      }
    });
  }

  /** @param {api.SessionOptions} options */
  async session({ rewind = 0, ...settings } = {}) {
    checkWhole("rewind", rewind, MOST_REWIND);
    const seed = settings.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]; // ten digits can be typed again
    return new Session(
      this.#host,
      await this.#host.call("create", checked({ ...settings, seed }), rewind),
      this,
    );
  }

  /** @param {ArrayBuffer | Uint8Array} state @param {{ rewind?: number }} options */
  async restore(state, { rewind = 0, ...unknown } = {}) {
    refuse(unknown);
    checkWhole("rewind", rewind, MOST_REWIND);
    return new Session(this.#host, await this.#host.call("restore", bytesOf(state), rewind), this);
  }

  close() {
    this.#host.end(closed());
  }
}

/** @implements {api.Session} */
class Session {
  #host;
  #tsm; // which would end its engine when nobody holds it
  #stream;
  #closed = false;
  /** @type {Promise<unknown>} what is done before the next call */
  #last = Promise.resolve();

  /** @param {Host} host @param {Calls["create"]["value"]} opened @param {TSM} tsm */
  constructor(host, { stream, position, settings }, tsm) {
    this.#host = host;
    this.#tsm = tsm;
    this.#stream = stream;
    this.position = position;
    this.settings = settings;
    forgotten.register(this, () => void host.call("free", stream).catch(() => {}), this);
  }

  /** @param {api.Text} text @param {{ signal?: AbortSignal }} options */
  async feed(text, { signal } = {}) {
    const all = pieces(text, FEED_BYTES);
    if (all.length === 1 && !signal) return void (await this.#inOrder("feed", all[0]));
    return this.#inTurn(signal, async () => {
      for (const bytes of all) {
        signal?.throwIfAborted();
        await this.#call("feed", bytes);
      }
    });
  }

  /** @param {api.Text} text @param {{ signal?: AbortSignal }} options */
  score(text, { signal } = {}) {
    return this.#inTurn(signal, async () => {
      const nats = [];
      for (const bytes of pieces(text, SCORE_BYTES)) {
        signal?.throwIfAborted();
        nats.push(...(await this.#call("score", bytes)).nats);
      }
      return Float32Array.from(nats);
    });
  }

  /** @param {api.GenerateOptions} options */
  generate({ bytes, stop, signal, ...settings } = {}) {
    return new Generation(signal, async (way) => {
      return { ...(await this.draw({ bytes, stop, settings }, way)), promptBytes: 0 };
    });
  }

  /** @param {{ bytes?: number, stop?: string | readonly string[], settings?: api.Settings }} options
   * @param {Way} way @returns {Promise<Omit<Found, "promptBytes">>} */
  draw({ bytes = 500, stop = [], settings = {} }, way) {
    return this.#inTurn(way.signal, async () => {
      const stops = [stop].flat();
      if (bytes !== Infinity) checkWhole("bytes", bytes, Number.MAX_SAFE_INTEGER);
      if (stops.some((text) => typeof text !== "string" || text.includes("\0")))
        throw found("stop", stop, "text without U+0000");
      if (Object.keys(settings).length) await this.#call("set", checked(settings));
      const started = performance.now();
      const { draws } = await this.#call("generate", bytes, stops);
      for (let slice = 0; ; slice = SLICE_MS) {
        const { text, finish, draws: now } = await this.#call("next", slice);
        way.signal?.throwIfAborted();
        way.give(text);
        if (finish || way.cancelled) {
          const drawn = now - draws;
          const bytesPerSecond = (1000 * drawn) / (performance.now() - started);
          return {
            finishReason: finish ?? "cancelled",
            seed: this.settings.seed,
            bytes: drawn,
            bytesPerSecond,
          };
        }
      }
    });
  }

  /** @param {api.Text | undefined} before @param {api.CompleteOptions} options */
  complete(before, { to = "word", count = 1, threshold = 0.55, maxBytes = 48, signal, ...unknown } = {}) {
    return this.#inTurn(signal, async () => {
      refuse(unknown);
      const text = before === undefined ? before : bytesOf(before);
      if (to !== "word" && to !== "line") throw found("to", to, "word or line");
      checkWhole("count", count, MOST_COMPLETIONS);
      checkWhole("maxBytes", maxBytes, 2 ** 32 - 1);
      if (typeof threshold !== "number") throw found("threshold", threshold, "a number");
      while ((await this.#call("follow", text, FOLLOW_BYTES)).left) signal?.throwIfAborted();
      return (await this.#call("complete", to, count, maxBytes, threshold)).completions;
    });
  }

  async logits() {
    return (await this.#inOrder("logits")).logits;
  }

  /** @param {number} bytes */
  async rewind(bytes) {
    checkWhole("bytes", bytes, Number.MAX_SAFE_INTEGER);
    await this.#inOrder("rewind", bytes);
  }

  async fork() {
    return new Session(this.#host, await this.#inOrder("fork"), this.#tsm);
  }

  async save() {
    return (await this.#inOrder("save")).state;
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    forgotten.unregister(this);
    this.#last.then(() => this.#host.call("free", this.#stream)).catch(() => {}); // an ended engine has no more
  }

  /** A single call of the engine's. The next one need not wait for it: the engine answers in order.
   * @template {Method} M @param {M} method @param {Arguments<M>} args @returns {Promise<Calls[M]["value"]>} */
  #inOrder(method, ...args) {
    return this.#last.then(() => this.#call(method, ...args));
  }

  /** Work of several calls of the engine's, between which no other comes.
   * @template T @param {AbortSignal | undefined} signal @param {() => Promise<T>} work */
  #inTurn(signal, work) {
    const done = this.#last.then(() => {
      signal?.throwIfAborted();
      return work();
    });
    this.#last = done.catch(() => {});
    return abortable(signal, () => done);
  }

  /** @template {Method} M @param {M} method @param {Arguments<M>} args @returns {Promise<Calls[M]["value"]>} */
  async #call(method, ...args) {
    if (this.#closed) throw closed();
    const reply = await /** @type {any} */ (this.#host).call(method, this.#stream, ...args);
    if (method !== "fork") this.position = reply.position;
    if (method === "set") this.settings = reply.settings;
    return reply;
  }
}

/** @typedef {Omit<api.Result, "text" | "firstTextMs">} Found besides the text */

/** @implements {api.Generation} */
class Generation {
  #signal;
  #result;
  #ended = false;
  /** @type {string[]} */
  #pieces = [];
  /** @type {Way} */
  #way;
  /** @type {((value?: undefined) => void)[]} loops that wait for a piece or the end */
  #waiting = [];

  /** @param {AbortSignal | undefined} signal
   * @param {(way: Way) => Promise<Found>} run */
  constructor(signal, run) {
    const started = performance.now();
    let firstTextMs = 0;
    this.#signal = signal;
    this.#way = {
      signal,
      cancelled: false,
      give: (text) => {
        if (!text) return;
        firstTextMs ||= performance.now() - started;
        this.#pieces.push(text);
        this.#tell();
      },
    };
    this.#result = abortable(signal, async () => {
      const result = await run(this.#way);
      return { text: this.#pieces.join(""), ...result, firstTextMs };
    }).finally(() => {
      this.#ended = true;
      this.#tell();
    });
    this.#result.catch(() => {}); // who only takes the pieces is told there
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let next = 0; ;) {
        this.#signal?.throwIfAborted();
        if (next < this.#pieces.length) yield this.#pieces[next++];
        else if (this.#ended) break;
        else await new Promise((resolve) => this.#waiting.push(resolve));
      }
      await this.#result;
    } finally {
      this.cancel();
    }
  }

  #tell() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  cancel() {
    this.#way.cancelled = true;
  }

  /** @type {Promise<api.Result>["then"]} */
  then(resolved, rejected) {
    return this.#result.then(resolved, rejected);
  }

  /** @type {Promise<api.Result>["catch"]} */
  catch(rejected) {
    return this.#result.catch(rejected);
  }

  /** @type {Promise<api.Result>["finally"]} */
  finally(settled) {
    return this.#result.finally(settled);
  }

  get [Symbol.toStringTag]() {
    return "Generation";
  }
}

/** Rejects as soon as the signal says so. @template T @param {AbortSignal | undefined} signal
 * @param {() => Promise<T>} work @returns {Promise<T>} */
function abortable(signal, work) {
  if (!signal) return work();
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    if (signal.aborted) return stop();
    signal.addEventListener("abort", stop);
    work()
      .then(resolve, reject)
      .finally(() => signal.removeEventListener("abort", stop));
  });
}

/** Relaxed SIMD where it is known; the engine itself checks that it is right. */
function best() {
  // A function of i8x16.relaxed_swizzle.
  const relaxed = new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2,
    253, 15, 253, 128, 2, 11,
  ]);
  return WebAssembly.validate(relaxed)
    ? new URL("./tsm-relaxed.wasm", import.meta.url)
    : new URL("./tsm.wasm", import.meta.url);
}

/** @param {api.Source | WebAssembly.Module} wasm */
async function compile(wasm) {
  if (wasm instanceof WebAssembly.Module) return wasm;
  try {
    return await WebAssembly.compile(await readWhole(wasm));
  } catch (error) {
    if (!(error instanceof WebAssembly.CompileError)) throw error;
    throw new TSMError("unsupported", `wasm: ${error.message}, wanted tsm.wasm and an engine with SIMD128`);
  }
}

/** @param {api.Settings} settings those that were given, each of which a field of the engine can hold */
function checked({ seed, logitBias, ...settings }) {
  for (const [name, value] of Object.entries(settings)) {
    const field = FIELDS[name];
    if (!field) refuse({ [name]: value });
    if (value === undefined) continue;
    if (field[1] === "Uint32") checkWhole(name, value, 2 ** 32 - 1);
    else if (typeof value !== "number") throw found(name, value, "a number");
  }
  if (seed !== undefined && typeof seed !== "bigint") checkWhole("seed", seed, Number.MAX_SAFE_INTEGER);
  if (typeof seed === "bigint" && BigInt.asUintN(64, seed) !== seed) throw found("seed", seed, "0 to 2^64 - 1");
  for (const [byte, value] of Object.entries(logitBias ?? {})) {
    checkWhole("logitBias", Number(byte), 255);
    if (typeof value !== "number") throw found("logitBias", value, "a number");
  }
  return { ...settings, seed, logitBias };
}

/** @param {string} name @param {unknown} value @param {number} most */
function checkWhole(name, value, most) {
  const whole = Number.isInteger(value) && /** @type {number} */ (value) >= 0;
  if (!whole || /** @type {number} */ (value) > most) throw found(name, value, `a whole number, 0 to ${most}`);
}

/** @param {string} name @param {unknown} value @param {string} wanted */
function found(name, value, wanted) {
  return new TSMError(
    "argument",
    `${name}: found ${typeof value === "string" ? JSON.stringify(value) : String(value)}, wanted ${wanted}`,
  );
}

/** @param {object} options that nothing knows */
function refuse(options) {
  const [name] = Object.keys(options);
  if (name !== undefined) throw new TSMError("argument", `${name}: no option of this call`);
}

/** @param {api.Text | ArrayBuffer} text */
function bytesOf(text) {
  if (typeof text === "string") return encoder.encode(text);
  if (text instanceof ArrayBuffer) return new Uint8Array(text);
  if (text instanceof Uint8Array) return text;
  throw found("text", text, "a string or bytes");
}

/** @param {api.Text} text @param {number} size */
function pieces(text, size) {
  const bytes = bytesOf(text);
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) =>
    bytes.slice(i * size, (i + 1) * size),
  );
}

/* The engine: the calls of runtime/native/tsm.h on WebAssembly's memory, one after the other. It runs in a
 * worker or on the caller's own thread; index.js calls these methods by name. */

/** @import * as api from "./index.d.ts" */

import { TSMError } from "./errors.js";

/** @type {Record<string, api.ErrorCode>} by the status that C returns */
const CODES = {
  "-2": "not_finite",
  "-3": "argument",
  "-4": "memory",
  "-6": "artifact",
  "-7": "unsupported",
  "-8": "state",
};
const MESSAGE_BYTES = 160; // TSM_MESSAGE_BYTES
const RUNNING = 0; // TSM_RUNNING
const TO = ["word", "line"]; // TSM_WORD, TSM_LINE
const COMPLETION_BYTES = 24; // tsm_completion as wasm32 lays it out
const WORD_BYTES = 64; // the longest that a completion replaces
const RECENT_BYTES = 1024; // by so many the recent text moves on, and is read again
const FINISHES = /** @type {const} */ ([undefined, "length", "stop"]);

/* tsm_sampling as wasm32 lays it out; a test asks the compiler. */
/** @type {Record<string, [at: number, kind: "Float64" | "Uint32"]>} */
export const FIELDS = {
  temperature: [0, "Float64"],
  typicalP: [8, "Float64"],
  topP: [16, "Float64"],
  minP: [24, "Float64"],
  repetitionPenalty: [32, "Float64"],
  presencePenalty: [40, "Float64"],
  frequencyPenalty: [48, "Float64"],
  topK: [2112, "Uint32"],
  penaltyWindow: [2116, "Uint32"],
};
export const LOGIT_BIAS = 56;
export const SEED = 2104;
export const SAMPLING_BYTES = 2120;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const encoder = new TextEncoder();

export class Engine {
  /** @type {Record<string, any>} */
  #c;
  #model = 0;
  #file = 0;
  #fileBytes = 0;
  #message;
  #out; // two words: where calls put a pointer and a length
  #sampling;
  /** @type {Map<number, { at: number, end: Uint8Array }>} by stream, its completer and the end of the text there */
  #completers = new Map();

  /** @param {WebAssembly.Module} module */
  static async start(module) {
    return new Engine(await WebAssembly.instantiate(module, {}));
  }

  /** @param {WebAssembly.Instance} instance */
  constructor(instance) {
    this.#c = instance.exports;
    this.#c._initialize?.();
    this.#message = this.#room(MESSAGE_BYTES);
    this.#out = this.#room(8);
    this.#sampling = this.#room(SAMPLING_BYTES);
  }

  get memoryBytes() {
    return this.#c.memory.buffer.byteLength;
  }

  /* The model's file comes in pieces, straight to where it stays. */

  /** @param {number} bytes */
  reserve(bytes) {
    this.#fileBytes = bytes;
    this.#file = this.#room(bytes);
  }

  /** @param {number} at @param {Uint8Array} piece */
  write(at, piece) {
    this.#bytes(this.#file + at, piece.length).set(piece);
  }

  open() {
    const c = this.#c;
    this.#check(c.tsm_open(this.#file, this.#fileBytes, 0, 3, 1, this.#out, this.#message));
    this.#model = this.#word(this.#out);
    const at = c.tsm_metadata(this.#model, this.#out);
    return {
      metadata: JSON.parse(this.#text(at, this.#word(this.#out))),
      simd: /** @type {number} */ (c.tsm_simd(this.#model)),
    };
  }

  /* Streams are told by their addresses. */

  /** @param {api.Settings} settings @param {number} rewind */
  create(settings, rewind) {
    this.#c.tsm_sampling_defaults(this.#sampling);
    this.#writeSampling(settings);
    this.#check(this.#c.tsm_stream_new(this.#model, this.#sampling, rewind, this.#out, this.#message));
    return this.#opened();
  }

  /** @param {Uint8Array} state @param {number} rewind */
  restore(state, rewind) {
    this.#with(state.length, (at) => {
      this.#bytes(at, state.length).set(state);
      const { tsm_restore } = this.#c;
      this.#check(tsm_restore(this.#model, at, state.length, rewind, this.#out, this.#message));
    });
    return this.#opened();
  }

  /** @param {number} stream */
  fork(stream) {
    this.#check(this.#c.tsm_fork(stream, this.#out, this.#message));
    return this.#opened();
  }

  /** @param {number} stream */
  free(stream) {
    this.#c.tsm_completer_free(this.#completers.get(stream)?.at ?? 0);
    this.#completers.delete(stream);
    this.#c.tsm_stream_free(stream);
  }

  /** @param {number} stream @param {api.Settings} settings */
  set(stream, settings) {
    this.#c.tsm_get_sampling(stream, this.#sampling);
    this.#writeSampling(settings);
    this.#check(this.#c.tsm_set_sampling(stream, this.#sampling, this.#message));
    return { ...this.#of(stream), settings: this.#readSampling() };
  }

  /** @param {number} stream @param {Uint8Array} bytes */
  feed(stream, bytes) {
    this.#with(bytes.length, (at) => {
      this.#bytes(at, bytes.length).set(bytes);
      this.#check(this.#c.tsm_feed(stream, at, bytes.length, this.#message));
    });
    return this.#of(stream);
  }

  /** @param {number} stream @param {Uint8Array} bytes */
  score(stream, bytes) {
    const nats = this.#with(5 * bytes.length + 3, (at) => {
      const text = at + 4 * bytes.length; // after the floats, which want a multiple of 4
      this.#bytes(text, bytes.length).set(bytes);
      this.#check(this.#c.tsm_score(stream, text, bytes.length, at, this.#message));
      return this.#floats(at, bytes.length);
    });
    return { ...this.#of(stream), nats };
  }

  /** @param {number} stream */
  logits(stream) {
    this.#check(this.#c.tsm_logits(stream, this.#out, this.#message));
    return { ...this.#of(stream), logits: this.#floats(this.#word(this.#out), 256) };
  }

  /** Reads what is to be completed, `most` bytes of it at most, to 64; `left`: how many are left to be read.
   * @param {number} stream @param {Uint8Array | undefined} text default: what the stream has read, as far as it is kept
   * @param {number} most */
  follow(stream, text = this.#recent(stream), most) {
    const completer = this.#completers.get(stream) ?? { at: 0, end: text };
    if (!completer.at) {
      this.#check(this.#c.tsm_completer_new(this.#model, this.#out, this.#message));
      completer.at = this.#word(this.#out);
      this.#completers.set(stream, completer);
    }
    completer.end = text.slice(-WORD_BYTES);
    this.#with(text.length, (at) => {
      this.#bytes(at, text.length).set(text);
      this.#check(this.#c.tsm_follow(completer.at, at, text.length, most, this.#out, this.#message));
    });
    return { ...this.#of(stream), left: this.#word(this.#out) };
  }

  /** Of the text that was followed. @param {number} stream @param {string} to @param {number} count
   * @param {number} maxBytes @param {number} threshold */
  complete(stream, to, count, maxBytes, threshold) {
    const { at, end } = /** @type {{ at: number, end: Uint8Array }} */ (this.#completers.get(stream));
    const { tsm_complete } = this.#c;
    const [found, shown] = [this.#out, this.#out + 4];
    this.#check(tsm_complete(at, TO.indexOf(to), count, maxBytes, threshold, found, shown, this.#message));
    const completions = Array.from({ length: this.#word(shown) }, (_, i) => {
      const one = this.#word(found) + i * COMPLETION_BYTES;
      const replaced = end.subarray(end.length - this.#word(one + 16));
      return {
        text: this.#text(this.#word(one), this.#word(one + 4)),
        probability: new Float64Array(this.#c.memory.buffer, one + 8, 1)[0],
        replaced: decoder.decode(replaced).length,
      };
    });
    return { ...this.#of(stream), completions };
  }

  /** @param {number} stream @param {number} bytes @param {string[]} stops */
  generate(stream, bytes, stops) {
    const texts = stops.map((stop) => encoder.encode(`${stop}\0`));
    const all = texts.reduce((sum, text) => sum + text.length, 4 * texts.length);
    this.#with(all, (list) => {
      let at = list + 4 * texts.length;
      const pointers = new Uint32Array(this.#c.memory.buffer, list, texts.length);
      texts.forEach((text, i) => {
        this.#bytes(at, text.length).set(text);
        pointers[i] = at;
        at += text.length;
      });
      const count = bytes === Infinity ? 2n ** 64n - 1n : BigInt(bytes);
      this.#check(this.#c.tsm_generate(stream, count, list, texts.length, this.#message));
    });
    return this.#of(stream);
  }

  /** The text that comes in so many milliseconds; one piece at least. @param {number} stream
   * @param {number} milliseconds */
  next(stream, milliseconds) {
    const { tsm_next, tsm_finish_reason } = this.#c;
    const end = performance.now() + milliseconds;
    let text = "";
    let finish;
    do {
      this.#check(tsm_next(stream, this.#out, this.#out + 4, this.#message));
      text += this.#text(this.#word(this.#out), this.#word(this.#out + 4));
      finish = tsm_finish_reason(stream);
    } while (finish === RUNNING && performance.now() < end);
    return { ...this.#of(stream), text, finish: FINISHES[finish] };
  }

  /** @param {number} stream @param {number} bytes */
  rewind(stream, bytes) {
    this.#check(this.#c.tsm_rewind(stream, BigInt(bytes), this.#message));
    return this.#of(stream);
  }

  /** @param {number} stream */
  save(stream) {
    const size = this.#c.tsm_save(stream, 0, 0);
    const state = this.#with(size, (at) => {
      this.#c.tsm_save(stream, at, size);
      return this.#bytes(at, size).slice();
    });
    return { ...this.#of(stream), state };
  }

  /* Within */

  /** What a stream has read last: from a place on that stays as it goes on. @param {number} stream */
  #recent(stream) {
    const at = this.#c.tsm_recent(stream, this.#out);
    const bytes = this.#word(this.#out);
    const before = Number(this.#c.tsm_position(stream)) - bytes;
    return this.#bytes(at, bytes).slice((RECENT_BYTES - (before % RECENT_BYTES)) % RECENT_BYTES);
  }

  /** What replies tell of a stream. @param {number} stream */
  #of(stream) {
    return { position: Number(this.#c.tsm_position(stream)), draws: Number(this.#c.tsm_draws(stream)) };
  }

  #opened() {
    const stream = this.#word(this.#out);
    this.#c.tsm_get_sampling(stream, this.#sampling);
    return { stream, ...this.#of(stream), settings: this.#readSampling() };
  }

  /** @param {api.Settings} settings already checked for what a field can hold */
  #writeSampling({ seed, logitBias, ...settings }) {
    const view = new DataView(this.#c.memory.buffer, this.#sampling, SAMPLING_BYTES);
    for (const [name, value] of Object.entries(settings)) {
      if (value === undefined) continue;
      const [at, kind] = FIELDS[name];
      view[`set${kind}`](at, value, true);
    }
    if (seed !== undefined) view.setBigUint64(SEED, BigInt(seed), true);
    if (logitBias)
      for (let byte = 0; byte < 256; byte++) view.setFloat64(LOGIT_BIAS + 8 * byte, logitBias[byte] ?? 0, true);
  }

  #readSampling() {
    const view = new DataView(this.#c.memory.buffer, this.#sampling, SAMPLING_BYTES);
    const settings = /** @type {any} */ ({});
    for (const [name, [at, kind]] of Object.entries(FIELDS)) settings[name] = view[`get${kind}`](at, true);
    /** @type {Record<number, number>} */
    const logitBias = {};
    for (let byte = 0; byte < 256; byte++) {
      const value = view.getFloat64(LOGIT_BIAS + 8 * byte, true);
      if (value !== 0) logitBias[byte] = value;
    }
    const seed = view.getBigUint64(SEED, true);
    /** @type {Required<api.Settings>} */
    const all = { ...settings, logitBias, seed: seed > Number.MAX_SAFE_INTEGER ? seed : Number(seed) };
    return all;
  }

  /** @param {number} status */
  #check(status) {
    if (!status) return;
    const code = CODES[status];
    const text = this.#bytes(this.#message, MESSAGE_BYTES);
    const line = decoder.decode(text.subarray(0, text.indexOf(0)));
    throw new TSMError(code, line.replace(/^stops:/, "stop:").replace(/^\w+(?=:)/, camelCase)); // its names are Python's
  }

  /** @param {number} bytes */
  #room(bytes) {
    const at = this.#c.malloc(bytes);
    if (!at && bytes) throw new TSMError("memory", `no memory for ${bytes} bytes`);
    return at;
  }

  /** @template T @param {number} bytes @param {(at: number) => T} use */
  #with(bytes, use) {
    const at = this.#room(bytes);
    try {
      return use(at);
    } finally {
      this.#c.free(at);
    }
  }

  /* Views are made anew each time: memory that grows detaches those before. */

  /** @param {number} at @param {number} count */
  #bytes(at, count) {
    return new Uint8Array(this.#c.memory.buffer, at, count);
  }

  /** @param {number} at @param {number} count */
  #floats(at, count) {
    return new Float32Array(this.#c.memory.buffer, at, count).slice();
  }

  /** @param {number} at @param {number} count */
  #text(at, count) {
    return decoder.decode(this.#bytes(at, count));
  }

  /** @param {number} at @returns {number} */
  #word(at) {
    return new Uint32Array(this.#c.memory.buffer, at, 1)[0];
  }
}

/** @param {string} name */
function camelCase(name) {
  return name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
}

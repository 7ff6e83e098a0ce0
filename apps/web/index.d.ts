/** A language model over bytes, as WebAssembly: the same text as every other engine of TSM, to the byte. */

/** Where a model or tsm.wasm comes from. A string is a URL; in Node, Bun and Deno also a path. */
export type Source = string | URL | Response | Blob | ArrayBuffer | Uint8Array;

/** What to continue: text is read as UTF-8. */
export type Text = string | Uint8Array;

export interface LoadOptions {
  /** Compute in a worker, so that a page stays at 60 frames a second. Default: true in a page, else false.
   * Without one, the event loop gets its turn every 8 ms. */
  worker?: boolean;
  /** Called as the model comes in; `total` is undefined where the server does not say. */
  onProgress?: (progress: { loaded: number; total: number | undefined }) => void;
  signal?: AbortSignal;
  /** Default: tsm-relaxed.wasm beside the package's own modules, or tsm.wasm where there is no relaxed SIMD. */
  wasm?: Source | WebAssembly.Module;
}

/** What docs/generation.md says of each; unknown names and values out of range are errors. */
export interface Settings {
  /** 0 always takes the likeliest byte. Default 0.8. */
  temperature?: number;
  /** Draw from the likeliest, so many; 0: all. */
  topK?: number;
  typicalP?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  /** How many bytes are recent, for the penalties: 4096 at most. Default 64. */
  penaltyWindow?: number;
  /** By byte, what is added to its logit; -Infinity: never. */
  logitBias?: Record<number, number>;
  /** The same one, the same text. Below 2^64, from 2^53 on as a bigint; default: a random one, which the
   * result tells. */
  seed?: number | bigint;
}

export interface GenerateOptions extends Settings {
  /** How many to draw at most; Infinity: until it is aborted. Default 500. */
  bytes?: number;
  /** Ends before this text, or one of them. */
  stop?: string | readonly string[];
  /** No text comes after an abort; the promise rejects with the signal's reason, as that of fetch. */
  signal?: AbortSignal;
}

export interface Result {
  text: string;
  /** `cancelled`: by `cancel()`, or a loop over the pieces was left. */
  finishReason: "length" | "stop" | "cancelled";
  seed: number | bigint;
  /** Bytes drawn, those of a stop text included. */
  bytes: number;
  promptBytes: number;
  /** Of drawing them, the prompt not included. */
  bytesPerSecond: number;
  /** From the call until the first text: the prompt, and what was before it in the queue. */
  firstTextMs: number;
}

/** Text under way. It starts at once and goes on whether or not anybody reads: `await` it for the whole, or
 * take the pieces, whole characters, with `for await`; both do. A loop that is left ends it. */
export interface Generation extends Promise<Result>, AsyncIterable<string> {
  /** Ends it with the piece under way. */
  cancel(): void;
}

export interface CompleteOptions {
  /** The rest of the word, or the next one; or as many words of the line as are probable enough. Default "word". */
  to?: "word" | "line";
  /** How many at most, 1 to 16, the best first. Default 1. */
  count?: number;
  /** None of a lower probability, above 0. Default 0.55, at which two of three or more are right. */
  threshold?: number;
  /** Length of one at most, in UTF-8. Default 48. */
  maxBytes?: number;
  signal?: AbortSignal;
}

export interface Completion {
  /** To put in at the cursor. */
  text: string;
  /** That the text goes on so, and that its last word ends there. */
  probability: number;
  /** How much before the cursor it takes the place of, as `length` counts: a typing error. */
  replaced: number;
}

/** One text, and what the model remembers of it. Its calls are done in the order in which they are made. */
export interface Session {
  /** Bytes read and drawn. */
  readonly position: number;
  readonly settings: Readonly<Required<Settings>>;
  /** Reads a text. */
  feed(text: Text, options?: { signal?: AbortSignal }): Promise<void>;
  /** Goes on; settings given here hold from here on. After an abort the session may be some bytes
   * ahead of the text that was given: go on from a fork of before, or rewind to an earlier `position`. */
  generate(options?: GenerateOptions): Generation;
  /** Completes a text, as docs/completion.md says: `before`, all that stands before the cursor, or without it
   * what the session has read, of its last 4,096 bytes. Of a text that goes on from the one before no more is
   * read than what is new, and after a deletion nothing. The session stays where it is; settings do not count. */
  complete(before?: Text, options?: CompleteOptions): Promise<Completion[]>;
  /** 256 of them, of the next byte, before bias and all else. */
  logits(): Promise<Float32Array>;
  /** Reads a text, and says of each byte how unlikely it was: -log p, in nats. */
  score(text: Text, options?: { signal?: AbortSignal }): Promise<Float32Array>;
  /** Forgets the last bytes, as if they had never been; as far back as `rewind` says. */
  rewind(bytes: number): Promise<void>;
  /** Another session, which goes on from here by itself. */
  fork(): Promise<Session>;
  /** All that goes on from here: the file of Python's --save-state. */
  save(): Promise<Uint8Array<ArrayBuffer>>;
  /** Gives back its memory, and ends what is under way. */
  close(): void;
}

export interface SessionOptions extends Settings {
  /** By how many bytes it can be rewound, at 40 KB for every 256. Default 0. */
  rewind?: number;
}

export class TSM {
  private constructor();
  /** Opens a .tflite or .onnx in int8 or int4, whole and undamaged. */
  static load(source: Source, options?: LoadOptions): Promise<TSM>;
  /** What the file says of itself: sha256, license, quantization, spec and more. */
  readonly metadata: Readonly<Record<string, unknown>>;
  /** All memory of the engine, the model included. */
  readonly memoryBytes: number;
  /** Which instructions compute: 0 plain, 1 SIMD128, 2 relaxed SIMD. */
  readonly simd: number;
  /** A text of its own: several at once share the processor. */
  generate(prompt: Text, options?: GenerateOptions): Generation;
  session(options?: SessionOptions): Promise<Session>;
  /** A session from what Session.save, Python or C kept of one of this model. */
  restore(state: ArrayBuffer | Uint8Array, options?: { rewind?: number }): Promise<Session>;
  /** Gives back everything, ends the worker; what is under way rejects. */
  close(): void;
}

export type ErrorCode =
  /** An option or an argument. */
  | "argument"
  /** The file cannot be had. */
  | "io"
  /** No artifact, or a damaged one. */
  | "artifact"
  /** A sound one, but not for this engine. */
  | "unsupported"
  /** No state of this model, or a damaged one. */
  | "state"
  | "memory"
  | "not_finite"
  /** The worker has died, or the engine has trapped: load again. */
  | "crashed"
  | "closed";

/** One line of what was found and what was wanted. */
export class TSMError extends Error {
  readonly name: "TSMError";
  readonly code: ErrorCode;
  constructor(code: ErrorCode, message: string, options?: ErrorOptions);
}

/* Where an engine runs: on the caller's own thread, or in a worker. Both answer the same calls. */

import { Engine } from "./engine.js";
import { TSMError, known } from "./errors.js";
import { threads } from "./files.js";

/** @typedef {{ [M in keyof Engine]: Engine[M] extends (...args: infer A) => infer R
 *   ? { args: A, value: R } : never }} Calls */

/** @abstract */
export class Host {
  memoryBytes = 0;
  /** @type {TSMError | undefined} why it answers no more */
  ended;

  /** @template {keyof Calls} M @param {M} method @param {Calls[M]["args"]} args
   * @returns {Promise<Calls[M]["value"]>} */
  async call(method, ...args) {
    if (this.ended) throw this.ended;
    return this.answer(method, args);
  }

  /** @param {keyof Calls} method @param {unknown[]} args @returns {Promise<any>} */
  async answer(method, args) {
    throw new Error(`${method}(${args})`);
  }

  /** @param {TSMError} reason */
  end(reason) {
    this.ended ??= reason;
  }
}

const TURN_MS = 8; // half a frame: a page stays usable

/** On this thread. A call is done at once, unless the event loop is due its turn. */
export class Local extends Host {
  /** @type {Engine | undefined} */
  #engine;
  /** @type {Promise<unknown>} what is done before the next call */
  #last = Promise.resolve();
  /** @type {Promise<void> | undefined} */
  #turn;
  #spent = 0; // milliseconds, since the last turn

  /** @param {WebAssembly.Module} module */
  async start(module) {
    this.#engine = await Engine.start(module);
    return this;
  }

  /** @override @param {keyof Calls} method @param {unknown[]} args */
  answer(method, args) {
    const done = this.#last.then(() => this.#answer(method, args));
    this.#last = done.catch(() => {});
    return done;
  }

  /** @param {keyof Calls} method @param {unknown[]} args */
  async #answer(method, args) {
    if (this.#spent >= TURN_MS) await this.#turn;
    if (!this.#engine) throw this.ended;
    this.#turn ??= turn().then(() => {
      this.#turn = undefined;
      this.#spent = 0;
    });
    const started = performance.now();
    try {
      const value = /** @type {any} */ (this.#engine)[method](...args);
      this.memoryBytes = this.#engine.memoryBytes;
      return value;
    } catch (error) {
      const reason = known(error);
      if (reason.code === "crashed") this.end(reason);
      throw reason;
    } finally {
      this.#spent += performance.now() - started;
    }
  }

  /** @override @param {TSMError} reason */
  end(reason) {
    super.end(reason);
    this.#engine = undefined;
  }
}

export class Remote extends Host {
  #worker;
  #last = 0;
  /** @type {Map<number, { resolve(value: any): void, reject(error: TSMError): void }>} */
  #waiting = new Map();

  constructor() {
    super();
    /** @param {{ message?: string } | number} event */
    const died = (event) => {
      const why = typeof event === "number" ? `exit code ${event}` : event.message;
      this.end(new TSMError("crashed", `the worker has ended: ${why || "it cannot be loaded, or memory is full"}`));
    };
    if (threads) {
      // Without the options of this process, which may be only for its own program.
      this.#worker = new threads.Worker(new URL("./worker.js", import.meta.url), { execArgv: [] });
      this.#worker
        .on("message", (reply) => this.#settle(reply))
        .on("error", died)
        .on("exit", died);
    } else {
      this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
      this.#worker.onmessage = ({ data }) => this.#settle(data);
      this.#worker.onerror = died;
    }
  }

  /** @param {WebAssembly.Module} module */
  async start(module) {
    await this.answer("start", [module]);
    return this;
  }

  /** @override @param {keyof Calls | "start"} method @param {unknown[]} args */
  answer(method, args) {
    return new Promise((resolve, reject) => {
      const id = ++this.#last;
      this.#waiting.set(id, { resolve, reject });
      this.#hold();
      this.#worker.postMessage({ id, method, args });
    });
  }

  /** @param {{ id: number, value?: unknown, memoryBytes?: number, error?: any }} reply */
  #settle({ id, value, memoryBytes, error }) {
    const promise = this.#waiting.get(id);
    this.#waiting.delete(id);
    this.#hold();
    if (!error) {
      this.memoryBytes = memoryBytes ?? 0;
      return promise?.resolve(value);
    }
    const reason = new TSMError(error.code, error.message);
    promise?.reject(reason);
    if (reason.code === "crashed") this.end(reason);
  }

  /** A worker with nothing to do does not keep a process of Node's alive. */
  #hold() {
    const worker = /** @type {Partial<import("node:worker_threads").Worker>} */ (this.#worker);
    if (this.#waiting.size) worker.ref?.();
    else worker.unref?.();
  }

  /** @override @param {TSMError} reason */
  end(reason) {
    super.end(reason);
    for (const { reject } of this.#waiting.values()) reject(reason);
    this.#waiting.clear();
    this.#worker.terminate();
  }
}

/** @type {() => Promise<unknown>} the event loop's next turn */
const turn = (() => {
  if ("setImmediate" in globalThis) return () => new Promise((resolve) => setImmediate(resolve));
  const { port1, port2 } = new MessageChannel(); // setTimeout waits 4 ms
  /** @type {((value?: unknown) => void)[]} */
  const waiting = [];
  port1.onmessage = () => waiting.shift()?.();
  return () =>
    new Promise((resolve) => {
      waiting.push(resolve);
      port2.postMessage(0);
    });
})();

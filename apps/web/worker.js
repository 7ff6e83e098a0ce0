/* A worker: an engine that answers messages, one after the other. */

import { Engine } from "./engine.js";
import { known } from "./errors.js";

const threads = globalThis.process?.getBuiltinModule?.("node:worker_threads");
const port = /** @type {{ onmessage: any, postMessage(message: unknown): void }} */ (
  /** @type {unknown} */ (threads?.parentPort ?? globalThis)
);
/** @type {Promise<Engine>} */
let starting;

/** @param {MessageEvent} event */
port.onmessage = async ({ data: { id, method, args } }) => {
  try {
    if (method === "start") starting = Engine.start(args[0]);
    const engine = await starting;
    const value = method === "start" ? undefined : /** @type {any} */ (engine)[method](...args);
    port.postMessage({ id, value, memoryBytes: engine.memoryBytes });
  } catch (error) {
    const { code, message } = known(error);
    port.postMessage({ id, error: { code, message } });
  }
};

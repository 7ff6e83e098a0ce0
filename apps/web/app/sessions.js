/* Texts that are kept in this browser, with what the model remembers of each. */

/** @typedef {{ id: string, name: string, text: string, cursor: number, changed: number,
 *   state?: Uint8Array, model?: string }} Kept `model`: the SHA-256 of the one whose state it is */

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @type {Promise<IDBDatabase>} */
const opened = (() => {
  const request = indexedDB.open("tsm", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("sessions", { keyPath: "id" });
  return done(request);
})();

/** @param {IDBTransactionMode} mode */
const store = async (mode) => (await opened).transaction("sessions", mode).objectStore("sessions");

/** @returns {Promise<Kept[]>} the newest first */
export async function list() {
  const all = /** @type {Kept[]} */ (await done((await store("readonly")).getAll()));
  return all.sort((a, b) => b.changed - a.changed);
}

/** @param {Kept} session */
export async function keep(session) {
  await done((await store("readwrite")).put(session));
}

/** @param {string} id */
export async function remove(id) {
  await done((await store("readwrite")).delete(id));
}

/** The last text of a state file, whose layout docs/generate.md has; the engine checks the rest.
 * @param {Uint8Array} state */
export function recentText(state) {
  const view = new DataView(state.buffer, state.byteOffset, state.byteLength);
  const start = 20 + view.getUint32(16, true);
  const header = JSON.parse(new TextDecoder().decode(state.subarray(20, start)));
  let bytes = state.subarray(start, start + header.parts[0]);
  while (bytes.length && (bytes[0] & 0xc0) === 0x80) bytes = bytes.subarray(1); // the rest of a character
  return bytes;
}

/** @param {string} name @param {Uint8Array<ArrayBuffer>} bytes */
export function download(name, bytes) {
  const url = URL.createObjectURL(new Blob([bytes]));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

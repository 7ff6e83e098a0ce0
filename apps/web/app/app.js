/* The page: opens a model, and connects the pad, the sampler, the heat-map and the sessions to it.
 * `make web-app` puts it together with the package; any static host serves it. */

/** @import { GenerateOptions, Settings } from "./tsm-runtime/index.js" */
/** @import { Kept } from "./sessions.js" */

import { TSM } from "./tsm-runtime/index.js";
import { Pad } from "./pad.js";
import { at, element, onClick } from "./page.js";
import { Reader } from "./reader.js";
import { download, keep, list, recentText, remove } from "./sessions.js";
import { Surprise } from "./surprise.js";

const KEEP_MS = 500; // after the last change
const SIMD = ["plain", "SIMD128", "relaxed SIMD"];
const form = at("settings", HTMLFormElement);
const page = { announce, failed, edited: keepSoon };
const pad = new Pad(page);
const surprise = new Surprise(page);
/** @type {TSM | undefined} */
let tsm;
/** @type {Reader | undefined} */
let reader;
/** @type {AbortController | undefined} of what is generated */
let going;
/** @type {Promise<void>} */
let gone = Promise.resolve(); // when its text is in the pad
/** @type {Kept} */
let open = fresh();
let keeping = 0;
let reopen = loadShipped; // what a restart does

/* What is told. */

/** @param {string} text to who cannot see it */
function announce(text) {
  at("live").textContent = text;
}

/** @param {string} text */
function tell(text) {
  at("speed").textContent = text;
  announce(text);
}

/** @param {any} error */
function failed(error) {
  if (error?.name === "AbortError" || error?.code === "closed") return; // on purpose
  if (error?.code !== "crashed") return tell(String(error?.message ?? error));
  notice(`${error.message}. Your text is still here.`, "Restart the engine", () => reopen().catch(failed));
}

/** @param {string} text @param {string} action @param {() => void} act */
function notice(text, action, act) {
  at("notice-text").textContent = text;
  const button = at("notice-button", HTMLButtonElement);
  button.textContent = action;
  button.onclick = () => {
    at("notice").hidden = true;
    act();
  };
  at("notice").hidden = false;
  announce(text);
}

/* The model. */

/** @param {Parameters<typeof TSM.load>[0]} source @param {string} name */
async function load(source, name) {
  const progress = at("progress", HTMLProgressElement);
  progress.hidden = false;
  at("model-error").hidden = true;
  try {
    const loaded = await TSM.load(source, {
      worker: false, // whose messages come a frame later than the key that they answer
      onProgress: ({ loaded, total }) => total && (progress.value = loaded / total),
    });
    tsm?.close();
    tsm = surprise.tsm = loaded;
    reader = pad.reader = new Reader(loaded);
  } finally {
    progress.hidden = true;
    progress.removeAttribute("value");
  }
  const { sha256, license, quantization, file_bytes } = /** @type {Record<string, string>} */ (tsm.metadata);
  const rows = Object.entries({
    Name: name,
    Size: `${(Number(file_bytes) / 1e6).toFixed(1)} MB, ${quantization}`,
    "SHA-256": sha256,
    Licence: license ?? "none named",
    Engine: `WebAssembly, ${SIMD[tsm.simd]}`,
  });
  at("model").replaceChildren(...rows.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]));
  at("go", HTMLButtonElement).disabled = false;
  tell(`Ready · ${memory()}`);
  surprise.measure();
}

/** The one beside the page. It is kept for offline use once it has been opened, and so is whole. */
async function loadShipped() {
  reopen = loadShipped;
  const { file, version } = await (await fetch("model.json")).json();
  const url = `${file}?${encodeURIComponent(version)}`;
  const cache = await globalThis.caches?.open("tsm"); // there is none where the page is not secure
  const kept = await cache?.match(url);
  if (kept) {
    try {
      return await load(kept, file);
    } catch {
      await cache.delete(url); // damaged since
    }
  }
  const response = await fetch(url);
  const copy = response.clone();
  await load(response, file);
  await cache?.put(url, copy);
}

/** @param {File} file of the user's own */
async function loadOwn(file) {
  try {
    await load(file, file.name);
    reopen = () => load(file, file.name);
    at("model").scrollIntoView({ block: "nearest" });
  } catch (error) {
    const line = `${file.name}: ${/** @type {any} */ (error).message.replace(/^the model: /, "")}`;
    at("model-error").textContent = line;
    at("model-error").hidden = false;
    announce(line);
  }
}

const memory = () => `${((tsm?.memoryBytes ?? 0) / 1e6).toFixed(1)} MB of memory`;

/* Going on. */

/** Those that are filled in. @returns {GenerateOptions} */
function settings() {
  const { stop, seed, ...rest } = /** @type {Record<string, string>} */ (Object.fromEntries(new FormData(form)));
  const numbers = Object.entries(rest).filter(([, value]) => value !== "");
  if (!/^\d*$/.test(seed)) throw new Error(`seed: found ${seed}, wanted a whole number`);
  return {
    ...Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)])),
    seed: seed ? BigInt(seed) : crypto.getRandomValues(new Uint32Array(1))[0],
    stop: stop ? stop.replaceAll("\\n", "\n") : [],
  };
}

/** @param {Reader} own */
async function goOn(own) {
  const { signal } = (going = new AbortController());
  at("stop", HTMLButtonElement).disabled = false;
  at("go").setAttribute("aria-disabled", "true");
  const { prefix } = pad;
  let told = "";
  try {
    const options = settings();
    await pad.going(async (grow) => {
      const stale = () => signal.aborted;
      const session = await own.turn(async () => {
        const onLeft = (/** @type {number} */ left) => (at("speed").textContent = `Reading, ${left} bytes to go`);
        await own.follow(prefix, stale, onLeft);
        return own.fork();
      });
      try {
        signal.throwIfAborted();
        const generation = session.generate({ ...options, signal });
        const started = performance.now();
        let bytes = 0;
        for await (const piece of generation) {
          grow(piece);
          bytes += new Blob([piece]).size;
          told = speed(bytes, (1000 * bytes) / (performance.now() - started), options.seed);
          at("speed").textContent = told;
        }
        const result = await generation;
        told = speed(result.bytes, result.bytesPerSecond, result.seed);
      } finally {
        session.close();
      }
    });
    tell(told);
  } catch (error) {
    if (signal.aborted) tell(`Stopped · ${told || "nothing written"}`);
    else failed(error);
  } finally {
    going = undefined;
    at("stop", HTMLButtonElement).disabled = true;
    at("go").removeAttribute("aria-disabled");
  }
}

/** @param {number} bytes @param {number} rate @param {Settings["seed"]} seed */
function speed(bytes, rate, seed) {
  return `${bytes} bytes · ${Math.round(rate).toLocaleString("en")} bytes/s · ${memory()} · seed ${seed}`;
}

/* Sessions. */

/** @returns {Kept} */
function fresh() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join(""), name: "", text: "", cursor: 0, changed: 0 };
}

function keepSoon() {
  clearTimeout(keeping);
  keeping = window.setTimeout(() => keepNow().catch(failed), KEEP_MS);
}

/** The text, and the state after it where the model has just read so far. */
async function keepNow() {
  clearTimeout(keeping);
  const { text, cursor } = pad;
  const session = open;
  if (!text && !session.changed) return;
  if (text !== session.text || !session.changed) {
    Object.assign(session, { text, changed: Date.now(), state: undefined });
    await keep(session); // at once: the engine may be busy
  }
  session.cursor = cursor;
  if (reader && tsm) {
    const own = reader;
    const { sha256 } = tsm.metadata;
    const state = await own.turn(() => own.stateOf(text, () => going !== undefined || pad.text !== text));
    if (session.text === text && state) Object.assign(session, { state, model: sha256 });
  }
  await keep(session);
  await showSessions();
}

/** Before another text takes the pad. @param {() => void} [enter] puts it there, as soon as the old one is taken */
async function leave(enter) {
  going?.abort();
  await gone;
  const kept = keepNow();
  enter?.();
  await kept;
}

async function showSessions() {
  const rows = (await list()).map((session) => {
    const name = nameOf(session);
    const button = (/** @type {string} */ text, /** @type {() => Promise<unknown>} */ act) =>
      element("button", { type: "button", ariaLabel: `${text} ${name}`, onclick: () => act().catch(failed) }, text);
    const opening = element("button", { type: "button", className: "name", onclick: () => void openKept(session).catch(failed) }, element("span", {}, name));
    if (session.id === open.id) opening.setAttribute("aria-current", "true");
    return element("li", {}, opening,
      button("Rename", () => rename(session)),
      button("Export", () => exportState(session)),
      button("Delete", () => removeKept(session)));
  });
  at("sessions").replaceChildren(...rows);
}

/** @param {Kept} session */
function nameOf({ name, text }) {
  return name || text.trim().split("\n")[0].slice(0, 60) || "Untitled";
}

/** @param {Kept} session */
async function openKept(session) {
  if (session.id !== open.id) await leave();
  open = session;
  pad.open(session.text, session.cursor);
  if (session.state && session.model === tsm?.metadata.sha256) {
    const { state, text } = session;
    const own = /** @type {Reader} */ (reader);
    await own.turn(() => own.restore(state, new TextEncoder().encode(text)));
  }
  await showSessions();
  announce(`Opened ${nameOf(session)}`);
}

/** @param {Kept} session */
async function rename(session) {
  const name = prompt("Name", nameOf(session));
  if (name === null) return;
  const kept = session.id === open.id ? open : session;
  kept.name = name.trim();
  await keep(kept);
  await showSessions();
}

/** @param {Kept} session */
async function removeKept(session) {
  if (!confirm(`Delete ${nameOf(session)}?`)) return;
  await leave();
  await remove(session.id);
  if (session.id === open.id) {
    open = fresh();
    pad.open("");
  }
  await showSessions();
  announce(`Deleted ${nameOf(session)}`);
}

/** The state after the whole text, with the settings of the page. @param {Kept} session */
async function exportState(session) {
  if (!reader) throw new Error("no model is open, whose state could be exported");
  if (session.id === open.id) await keepNow();
  const own = reader;
  const { stop, bytes, ...sampling } = settings();
  const state = await own.turn(async () => {
    await own.follow(session.id === open.id ? pad.text : session.text, () => false);
    const fork = await own.fork();
    try {
      await fork.generate({ ...sampling, bytes: 0 });
      return await fork.save();
    } finally {
      fork.close();
    }
  });
  download(`${nameOf(session).replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "session"}.tsmstate`, state);
}

/** @param {File} file */
async function importState(file) {
  const state = new Uint8Array(await file.arrayBuffer());
  if (!reader) throw new Error("no model is open, whose state it could be");
  await leave();
  const own = reader;
  try {
    await own.turn(async () => {
      const checked = await tsm?.restore(state);
      checked?.close();
      const bytes = recentText(state);
      show(await own.restore(state, bytes));
      open = { ...fresh(), name: file.name.replace(/\.tsmstate$/, "") };
      pad.open(new TextDecoder().decode(bytes));
    });
  } catch (error) {
    const { code, message } = /** @type {any} */ (error);
    throw code === "state" ? new Error(`${file.name}: ${message}`) : error;
  }
  await keepNow();
  tell(`Imported ${file.name}`);
}

/** @param {Readonly<Settings>} settings */
function show(settings) {
  for (const [name, value] of Object.entries(settings)) {
    const field = form.elements.namedItem(name);
    if (field instanceof HTMLInputElement) field.value = String(value);
  }
}

/* The rest of the page. */

onClick("go", () => {
  if (!going && reader) gone = goOn(reader);
});
onClick("stop", () => going?.abort());
onClick("new", async () => {
  await leave(() => {
    open = fresh();
    pad.open("");
    at("text").focus();
  }).catch(failed);
  await showSessions();
});
form.addEventListener("submit", (event) => event.preventDefault());

const threshold = at("threshold", HTMLInputElement);
const showThreshold = () => {
  pad.threshold = threshold.valueAsNumber / 100;
  at("threshold-value").textContent = threshold.value;
};
threshold.addEventListener("input", showThreshold);
showThreshold();

for (const [id, act] of /** @type {const} */ ([["open", loadOwn], ["import", importState]])) {
  const input = at(id, HTMLInputElement);
  input.addEventListener("change", () => {
    const [file] = input.files ?? [];
    if (file) act(file).catch(failed);
    input.value = ""; // the same file may be chosen again
  });
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  const [file] = event.dataTransfer?.files ?? [];
  if (!file) return; // text, which goes where it is dropped
  event.preventDefault();
  (file.name.endsWith(".tsmstate") ? importState : loadOwn)(file).catch(failed);
});

const theme = at("theme", HTMLSelectElement);
theme.value = localStorage.getItem("theme") ?? "";
const showTheme = () => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem("theme", theme.value);
};
theme.addEventListener("change", showTheme);
showTheme();

document.addEventListener("visibilitychange", () => document.hidden && keepNow().catch(failed));

async function offline() {
  const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
  const offer = () => {
    const { waiting } = registration;
    if (!waiting || !navigator.serviceWorker.controller) return;
    notice("A new version is there.", "Reload", async () => {
      await keepNow();
      navigator.serviceWorker.addEventListener("controllerchange", () => location.reload());
      waiting.postMessage("take over");
    });
  };
  const watch = () => registration.installing?.addEventListener("statechange", offer);
  offer();
  watch(); // it may have been found before this page asked
  registration.addEventListener("updatefound", watch);
}

if ("serviceWorker" in navigator) offline().catch((error) => tell(`Not kept for offline use: ${error.message}`));
await loadShipped().catch(failed);
try {
  const [newest] = await list();
  if (newest && !pad.text) await openKept(newest);
} catch (error) {
  failed(error);
}

/* Of the development build alone: the shipped model in other engines, on the same prompt. */

/** @typedef {{ read(tokens: Uint8Array): Promise<void>, generate(count: number): Promise<number[]> }} Engine */

import { litert, onnxruntime } from "../../../../benchmarks/web_engines.mjs";
import { TSM } from "../tsm-runtime/index.js";
import { at, element } from "../page.js";

const BYTES = 300;
const encoder = new TextEncoder();

async function tsm() {
  const model = await TSM.load("compare/shakespeare-int8.tflite");
  return async () => {
    const session = await model.session({ temperature: 0 });
    return {
      read: (/** @type {Uint8Array} */ tokens) => session.feed(tokens),
      generate: async (/** @type {number} */ bytes) => [...encoder.encode((await session.generate({ bytes })).text)],
    };
  };
}

/** @typedef {() => Promise<Engine> | Engine} Begin */
const ENGINES = /** @type {Record<string, () => Promise<Begin>>} */ ({
  "TSM": tsm,
  "LiteRT.js": () => litert("compare/litert/", "compare/shakespeare-int8.tflite"),
  "onnxruntime-web": () => onnxruntime("compare/onnxruntime/", "compare/shakespeare-int8.onnx"),
});
/** @type {Map<string, Promise<Begin>>} */
const loaded = new Map();

const section = document.createElement("section");
section.className = "card surprise";
section.innerHTML = `
  <h2>Engines</h2>
  <p class="hint">The likeliest ${BYTES} bytes after what is written above, or ROMEO. A second time shows the speed without compiling.</p>
  <div class="row">
    <label>Engine <select id="engine">${Object.keys(ENGINES).map((name) => `<option>${name}</option>`).join("")}</select></label>
    <button type="button" id="compare">Generate</button>
  </div>
  <table>
    <thead><tr><th>Engine</th><th>Prompt, bytes/s</th><th>Generated, bytes/s</th><th>Text</th></tr></thead>
    <tbody id="compared"></tbody>
  </table>`;
document.querySelector("main")?.append(section);
const select = at("engine", HTMLSelectElement);
const run = at("compare", HTMLButtonElement);
const rows = at("compared");

run.addEventListener("click", async () => {
  run.disabled = true;
  const name = select.value;
  try {
    const prompt = encoder.encode(at("text", HTMLTextAreaElement).value || "ROMEO:\n");
    if (!loaded.has(name)) loaded.set(name, ENGINES[name]());
    const begin = await /** @type {Promise<Begin>} */ (loaded.get(name));
    const engine = await begin();
    const rate = async (/** @type {number} */ bytes, /** @type {() => Promise<unknown>} */ work) => {
      const started = performance.now();
      await work();
      return Math.round((1000 * bytes) / (performance.now() - started)).toLocaleString("en");
    };
    /** @type {number[]} */
    let text = [];
    const read = await rate(prompt.length, () => engine.read(prompt));
    const generated = await rate(BYTES, async () => (text = await engine.generate(BYTES)));
    const cells = [name, read, generated, new TextDecoder().decode(Uint8Array.from(text))];
    rows.append(element("tr", {}, ...cells.map((cell) => element("td", {}, cell))));
  } catch (error) {
    rows.append(element("tr", {}, element("td", {}, name), element("td", { colSpan: 3 }, String(error))));
  }
  run.disabled = false;
});

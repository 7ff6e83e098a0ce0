/* In a page: as plain modules, built by Vite, bundled by esbuild; under a path of its own, with a strict
 * policy, in Debian's Chromium. */

import assert from "node:assert/strict";
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { createServer } from "vite";
import { blocks, checksPage, clone, open, root, serve, shell } from "./place.js";

const README = "apps/web/README.md";
const vectors = JSON.parse(readFileSync(join(root, "tests/vectors.json"), "utf8")).vectors;
const page = (/** @type {string} */ script) => `<!doctype html><script type="module" src="${script}"></script>`;
const generate = (/** @type {string} */ model) => `
  import { TSM } from "tsm-runtime";
  ${model}
  const tsm = await TSM.load(model);
  const { text } = await tsm.generate(${JSON.stringify(vectors[0].prompt)}, { bytes: 100, seed: 0 });
  report(text);`;
/** @type {string} */
let app;

before(() => {
  const folder = clone();
  shell(blocks(README, "sh")[0], folder);
  app = join(folder, "my-app");
});

for (const worker of [true, false])
  test(`plain modules, ${worker ? "with" : "without"} a worker: all that checks.js checks`, async (t) => {
    const url = await serve(t, app, checksPage("./node_modules/tsm-runtime", `{ worker: ${worker} }`));
    assert.deepEqual(await open(`${url}index.html`), [14, 2]);
  });

test("servers that compress, break off and have nothing; a page that is not in the way", async (t) => {
  const url = await serve(t, app, {
    "index.html": page("page.js"),
    "page.js": `
      import { TSM } from "./node_modules/tsm-runtime/index.js";
      const path = "node_modules/tsm-runtime/shakespeare-int8.tflite";
      const totals = new Set();
      const code = async (source, options) => {
        try {
          const tsm = await TSM.load(source, options);
          return (await tsm.generate("a", { bytes: 3 })).bytes;
        } catch (error) {
          return error.code;
        }
      };
      const found = [
        await code("/gzip/" + path, { onProgress: ({ total }) => totals.add(String(total)) }),
        await code("/cut/" + path),
        await code("nothing.tflite"),
        await code(path, { wasm: "nothing.wasm" }),
        await code(path, { wasm: path }),
        await code(path, { wasm: await (await fetch("node_modules/tsm-runtime/tsm.wasm")).arrayBuffer() }),
        [...totals].join(),
      ];
      const tsm = await TSM.load(path, { worker: false });
      let frames = 0;
      let under = true;
      const frame = () => { frames++; if (under) requestAnimationFrame(frame); };
      requestAnimationFrame(frame);
      const started = performance.now();
      await tsm.generate("x".repeat(300), { bytes: 300 });
      under = false;
      report([...found, frames > (performance.now() - started) / 200]);`,
  });
  const failed = ["404", "ERR_CONTENT_LENGTH_MISMATCH", "ERR_INCOMPLETE_CHUNKED"];
  const wanted = [3, "io", "io", "io", "unsupported", 3, "undefined", true];
  assert.deepEqual(await open(`${url}index.html`, failed), wanted);
});

test("a worker that cannot be loaded", async (t) => {
  const files = ["index.js", "engine.js", "errors.js", "files.js", "hosts.js", "tsm.wasm", "tsm-relaxed.wasm"];
  for (const file of files) copyFileSync(join(app, "node_modules/tsm-runtime", file), join(app, file));
  const url = await serve(t, app, {
    "index.html": page("page.js"),
    "page.js": 'import { TSM } from "./index.js";\nTSM.load("tsm.wasm").catch((error) => report(error.code));',
  });
  assert.equal(await open(`${url}index.html`, ["404"]), "crashed");
});

test("built by Vite, and by its development server", async (t) => {
  writeFileSync(join(app, "index.html"), page("./app.js"));
  writeFileSync(join(app, "app.js"), generate('import model from "tsm-runtime/shakespeare-int8.tflite?url";'));
  shell("vite build --base ./ --outDir vite", app);
  const url = await serve(t, join(app, "vite"), {});
  assert.equal(await open(`${url}index.html`), vectors[0].text);

  const optimizeDeps = { exclude: ["tsm-runtime"] };
  const host = { port: 0, host: "127.0.0.1" };
  const server = await createServer({ root: app, optimizeDeps, logLevel: "error", server: host });
  t.after(() => server.close());
  await server.listen();
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.httpServer?.address());
  assert.equal(await open(`http://127.0.0.1:${port}/`, ["404"]), vectors[0].text); // it has no icon
});

test("bundled by esbuild", async (t) => {
  const model = "node_modules/tsm-runtime/shakespeare-int8.tflite";
  writeFileSync(join(app, "app.js"), generate(`const model = "../${model}";`));
  shell(blocks(README, "sh")[1], app);
  const url = await serve(t, app, { "dist/index.html": page("app.js") });
  assert.equal(await open(`${url}dist/index.html`), vectors[0].text);
});

/* The package as npm packs it: its size, its types, and that its README is true. */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { blocks, bun, clone, deno, run, shell } from "./place.js";

const README = "apps/web/README.md";
/** @type {string} */
let app;

before(() => {
  const folder = clone();
  shell(blocks(README, "sh")[0], folder);
  app = join(folder, "my-app");
});

test("it has everything and nothing more", async () => {
  const [{ files, size }] = JSON.parse(shell("npm pack --json --dry-run ./apps/web", clone()));
  assert.deepEqual(files.map((/** @type {{ path: string }} */ file) => file.path).sort(), [
    "LICENSE",
    "README.md",
    "engine.js",
    "errors.js",
    "files.js",
    "hosts.js",
    "index.cjs",
    "index.d.cts",
    "index.d.ts",
    "index.js",
    "package.json",
    "shakespeare-int8.tflite",
    "tsm-relaxed.wasm",
    "tsm.wasm",
    "worker.js",
  ]);
  assert.ok(size <= 11e6, `${size} bytes`);
  const { dependencies, scripts } = JSON.parse(
    readFileSync(join(app, "node_modules/tsm-runtime/package.json"), "utf8"),
  );
  assert.equal(dependencies, undefined);
  assert.deepEqual(Object.keys(scripts), ["prepack"]); // which no installation runs
});

test("publint and attw find nothing", () => {
  const tarball = "../tsm-runtime-0.1.0.tgz";
  assert.match(shell(`publint --strict ${tarball}`, app), /All good/);
  assert.match(
    shell(
      `attw --profile node16 --exclude-entrypoints worker.js tsm.wasm tsm-relaxed.wasm shakespeare-int8.tflite -- ${tarball}`,
      app,
    ),
    /No problems found/,
  );
});

test("the README's program runs in Node, Bun and Deno", async () => {
  const file = join(app, "readme.mjs");
  writeFileSync(file, blocks(README, "js")[0]);
  for (const [program, ...args] of [[process.execPath], [bun], [deno, "run", "-A"]]) {
    const lines = (await run(program, [...args, file], app)).trim().split("\n");
    assert.equal(lines.at(-1), "true");
  }
});

test("CommonJS", () => {
  const code = `const { TSM } = require("tsm-runtime");
    TSM.load("node_modules/tsm-runtime/shakespeare-int8.tflite").then(async (tsm) =>
      console.log((await tsm.generate("ROMEO:", { bytes: 10, seed: 1 })).bytes));`;
  assert.equal(shell(`node -e '${code}'`, app), "10\n");
});

test("its types hold what is right and refuse what is not", () => {
  const right = `const tsm: TSM = await TSM.load(new URL("x:"), { worker: false });
    const { seed }: Result = await tsm.generate("a", { seed: 1n, stop: ["b"] });
    for await (const piece of tsm.generate(new Uint8Array())) piece.toUpperCase();
    const state: Uint8Array = await (await tsm.session({ rewind: 3 })).save();
    export { seed, state };`;
  const check = (/** @type {string} */ name, /** @type {string} */ code) => {
    writeFileSync(join(app, name), code);
    return shell(
      `tsc --strict --noEmit --target es2022 --module nodenext --lib es2024,dom ${name} || true`,
      app,
    );
  };
  const imported = 'import { TSM, type Result } from "tsm-runtime";\n';
  assert.equal(check("right.mts", imported + right), "");
  assert.match(
    check("wrong.mts", `${imported}(await TSM.load("x")).generate("a", { topp: 1 });`),
    /'topp' does not exist/,
  );
  assert.equal(check("right.cts", 'import { TSM } from "tsm-runtime";\nexport const tsm = TSM.load("x");'), "");
});

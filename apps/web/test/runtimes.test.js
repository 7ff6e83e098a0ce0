/* Node, Bun and Deno, with a worker and without: checks.js in each. And what is of Node alone. */

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import threads from "node:worker_threads";
import { FIELDS, LOGIT_BIAS, SAMPLING_BYTES, SEED } from "../engine.js";
import { TSM } from "../index.js";
import { bun, clone, deno, node, root, run } from "./place.js";

const model = join(root, "apps/web/shakespeare-int8.tflite");
const script = fileURLToPath(new URL("everywhere.js", import.meta.url));
const NAMES =
  "vectors pieces sessions completions together aborts aborted leaving mistakes states flat closing artifacts loading";

for (const [name, simd, program, ...args] of /** @type {[string, number, string, ...string[]][]} */ ([
  ["Node 20", 1, node(20)],
  ["Node 22", 2, node(22)],
  ["Bun", 2, bun],
  ["Deno", 2, deno, "run", "-A"],
]))
  for (const worker of [[], ["worker"]])
    test(`${name} ${worker}`, async () =>
      assert.equal(await run(program, [...args, script, ...worker]), `${NAMES}, SIMD ${simd}\n`));

test("settings lie where the compiler has them", async () => {
  const snake = (/** @type {string} */ name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  const places = Object.entries(FIELDS).map(([name, [at]]) => /** @type {const} */ ([snake(name), at]));
  const all = [
    ...places,
    /** @type {const} */ (["logit_bias", LOGIT_BIAS]),
    /** @type {const} */ (["seed", SEED]),
  ];
  const lines = all.map(([name, at]) => `_Static_assert(offsetof(tsm_sampling, ${name}) == ${at}, "${name}");`);
  lines.push(`_Static_assert(sizeof(tsm_sampling) == ${SAMPLING_BYTES}, "size");`);
  const file = join(clone(), "layout.c");
  writeFileSync(file, `#include "runtime/native/tsm.h"\n${lines.join("\n")}\n`);
  const zig = [
    join(root, "build/zig/bin/python"),
    "-m",
    "ziglang",
    "cc",
    "--target=wasm32-wasi",
    "-c",
    "-o",
    `${file}.o`,
  ];
  await run(zig[0], [...zig.slice(1), file]);
  assert.equal(lines.length, 12);
});

test("a worker that dies rejects all that waits for it", async () => {
  const { Worker } = threads;
  /** @type {threads.Worker[]} */
  const workers = [];
  threads.Worker = class extends Worker {
    /** @param {ConstructorParameters<typeof Worker>} args */
    constructor(...args) {
      super(...args);
      workers.push(this);
    }
  };
  try {
    const tsm = await TSM.load(model, { worker: true });
    const session = await tsm.session();
    const waiting = [
      tsm.generate("a", { bytes: Infinity }),
      session.generate({ bytes: Infinity }),
      session.save(),
    ];
    setTimeout(() => workers[0].terminate(), 100);
    for (const { reason } of /** @type {PromiseRejectedResult[]} */ (await Promise.allSettled(waiting)))
      assert.equal(reason.code, "crashed");
    await assert.rejects(tsm.session(), { name: "TSMError", code: "crashed" });
  } finally {
    threads.Worker = Worker;
  }
});

test("without a worker the event loop gets its turns", async () => {
  const tsm = await TSM.load(model);
  let turns = 0;
  const timer = setInterval(() => turns++, 0);
  const started = performance.now();
  await tsm.generate("x".repeat(500), { bytes: 300 });
  const milliseconds = performance.now() - started;
  clearInterval(timer);
  assert.ok(turns > milliseconds / 200, `${turns} turns in ${milliseconds} ms`);
});

test("a process ends by itself, its worker idle or under way", async () => {
  const code = (/** @type {string} */ rest) => `
    const { TSM } = await import(${JSON.stringify(join(root, "apps/web/index.js"))});
    const tsm = await TSM.load(${JSON.stringify(model)}, { worker: true });
    ${rest}`;
  const args = (/** @type {string} */ rest) => ["--input-type=module", "-e", code(rest)];
  assert.equal(
    await run(process.execPath, args('console.log((await tsm.generate("a", { bytes: 5 })).bytes)')),
    "5\n",
  );
  assert.equal(
    await run(process.execPath, args('tsm.generate("a", { bytes: 50 }).then((it) => console.log(it.bytes))')),
    "50\n",
  );
});

test("what nobody holds is given back, and no engine before its sessions", async () => {
  const code = `
    const { TSM } = await import(${JSON.stringify(join(root, "apps/web/index.js"))});
    const collect = () => new Promise((resolve) => setTimeout(() => resolve(gc()), 20));
    let session = await (await TSM.load(${JSON.stringify(model)})).session();
    for (let i = 0; i < 5; i++) await collect();
    await session.feed("a");
    const tsm = await TSM.load(${JSON.stringify(model)});
    const sizes = [];
    for (let i = 0; i < 20; i++) {
      for (let j = 0; j < 20; j++) await (await tsm.session()).feed("a");
      await collect();
      sizes.push(tsm.memoryBytes);
    }
    console.log(sizes.at(-1) - sizes[5] < 2e5, session.position); // 20 sessions have 800 KB`;
  const args = ["--expose-gc", "--input-type=module", "-e", code];
  assert.equal(await run(process.execPath, args), "true 1\n");
});

test("memory does not grow with the text", async () => {
  const tsm = await TSM.load(model);
  const session = await tsm.session();
  await session.generate({ bytes: 100 });
  const { memoryBytes } = tsm;
  await session.generate({ bytes: Number(process.env.TSM_BYTES ?? 5000) });
  assert.equal(tsm.memoryBytes, memoryBytes);
});

test("a text that is completed as one types and may be rewound takes at most 16 MB", async () => {
  const tsm = await TSM.load(model);
  const session = await tsm.session({ rewind: 4096 });
  await session.generate({ bytes: 500 });
  const text = readFileSync(join(root, "README.md"), "utf8");
  for (let i = 1500; i < 2000; i++) await session.complete(text.slice(0, i), { to: "line", count: 3 });
  assert.ok(tsm.memoryBytes <= 16e6, `${tsm.memoryBytes} bytes`);
});

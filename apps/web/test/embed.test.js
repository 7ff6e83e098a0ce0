/* docs/embed.md: its program for plain onnxruntime in JavaScript. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { blocks, clone, node, root, run } from "./place.js";

for (const version of /** @type {const} */ ([20, 22]))
  test(`onnxruntime-web in Node ${version} gives generate.py's text`, async () => {
    const [program] = blocks("docs/embed.md", "js");
    assert.ok(program.trim().split("\n").length <= 20);
    const folder = clone();
    symlinkSync(join(root, "benchmarks/node_modules"), join(folder, "node_modules"));
    writeFileSync(join(folder, "embed.mjs"), program);
    const args = ["--prompt", "ROMEO:\n", "--bytes", "100", "--temperature", "0"];
    const wanted = execFileSync("python3", [join(root, "runtime/generate.py"), ...args], { encoding: "utf8" });
    assert.equal(await run(node(version), ["embed.mjs"], folder), `ROMEO:\n${wanted}\n`);
  });

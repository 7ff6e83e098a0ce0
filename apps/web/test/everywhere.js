/* The checks in this process: node|bun|deno everywhere.js [worker]. Prints their names. */

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { TSM, TSMError } from "../index.js";
import { checks } from "./checks.js";

const path = fileURLToPath(new URL("../shakespeare-int8.tflite", import.meta.url));
const tests = (/** @type {string} */ name) => JSON.parse(readFileSync(new URL(`../../../tests/${name}.json`, import.meta.url), "utf8"));
const { done, simd } = await checks({
  TSMError,
  artifact: new Uint8Array(readFileSync(path)),
  vectors: tests("vectors").vectors,
  completions: tests("completions"),
  load: ({ source = path, ...options } = {}) =>
    TSM.load(source, { worker: process.argv[2] === "worker", ...options }),
});
console.log(`${done.join(" ")}, SIMD ${simd}`);

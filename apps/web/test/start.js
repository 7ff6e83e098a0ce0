/* Measures: from the start of Node to the first byte. node apps/web/test/start.js */

import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { node } from "./place.js";

const code = `
  import { TSM } from "../index.js";
  const tsm = await TSM.load("../shakespeare-int8.tflite");
  for await (const piece of tsm.generate("ROMEO:\\n", { bytes: 20 })) process.stdout.write(piece);`;
const times = [];
for (let i = 0; i < 15; i++) {
  const started = performance.now();
  const cwd = fileURLToPath(new URL(".", import.meta.url));
  const child = spawn(node(20), ["--input-type=module", "-e", code], {
    cwd,
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise((resolve) => child.stdout.once("data", resolve));
  times.push(Math.round(performance.now() - started));
  await new Promise((resolve) => child.once("close", resolve));
}
times.sort((a, b) => a - b);
console.log(`first byte ${times[7]} ms after the start of Node by the median of 15, ${times[0]} at best`);

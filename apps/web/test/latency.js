/* From a keystroke to the suggestion that was computed for it, in the web app: node apps/web/test/latency.js
 * [KEYS], after make web-app. Prints a line of JSON; wants a machine with nothing else to do. */

import { spawn } from "node:child_process";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { root } from "./place.js";

const TEXT = "ROMEO:\nBut soft, what light through yonder window breaks? It is the east, and Juliet is the sun. ";
const count = Number(process.argv[2] ?? 200);
const args = ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", join(root, "build/web-app")];
const server = spawn("python3", args, { stdio: ["ignore", "pipe", "ignore"] });
const [, port] = /port (\d+)/.exec(await new Promise((resolve) => server.stdout.once("data", (data) => resolve(String(data))))) ?? [];
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const page = await browser.newPage();
await page.goto(`http://127.0.0.1:${port}/`);
await page.locator("#go:enabled").waitFor();
await page.evaluate(() => {
  const ghost = /** @type {Element} */ (document.querySelector("#ghost"));
  const times = /** @type {number[]} */ ((/** @type {any} */ (window).times = []));
  let pressed = 0;
  document.addEventListener("keydown", (event) => (pressed = event.timeStamp), true);
  // What is left of the suggestion before is no answer yet: Esc has dropped it.
  new MutationObserver(() => {
    if (pressed && ghost.textContent) {
      times.push(performance.now() - pressed);
      pressed = 0;
    }
  }).observe(ghost, { childList: true });
});
await page.locator("#text").focus();
for (let i = 0; i < count; i++) {
  await page.keyboard.press("Escape");
  await page.waitForTimeout(30); // a key has a frame of its own, as when people type
  const key = TEXT[i % TEXT.length];
  await page.keyboard.press(key === "\n" ? "Enter" : key);
  await page.waitForTimeout(60);
}
const times = await page.evaluate(() => /** @type {number[]} */ (/** @type {any} */ (window).times).sort((a, b) => a - b));
const at = (/** @type {number} */ share) => Number(times[Math.floor(share * (times.length - 1))].toFixed(1));
console.log(JSON.stringify({ keys: count, suggestions: times.length, median_ms: at(0.5), p95_ms: at(0.95), worst_ms: at(1), browser: `Chromium ${browser.version()}` }));
await browser.close();
server.kill();

/* Firefox ESR and WebKitGTK, as Debian has them: what checks.js checks, and the way through the web app. Of the
 * console only Firefox tells. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import puppeteer from "puppeteer-core";
import { Builder, By } from "selenium-webdriver";
import { checksPage, clone, host, root, serve, shell } from "./place.js";

/** @import { TestContext } from "node:test" */
/** @typedef {{ go(url: string): Promise<unknown>, reload(): Promise<unknown>, type(text: string): Promise<unknown>,
 *   run<A extends unknown[], T>(work: (...args: A) => T, ...args: A): Promise<Awaited<T>> }} Browser */

const WAIT_MS = 60000;
const folder = clone();
before(() => shell(`sh ${join(root, "apps/web/app/build.sh")} ${folder}/site`, folder));

/** By WebDriver BiDi. @param {TestContext} t @returns {Promise<Browser>} */
async function firefox(t) {
  const browser = await puppeteer.launch({ browser: "firefox", executablePath: "/usr/bin/firefox-esr" });
  const page = await browser.newPage();
  /** @type {string[]} */
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  t.after(async () => {
    await browser.close();
    assert.deepEqual(wrong.filter((text) => !text.includes("favicon")), []);
  });
  return {
    go: (url) => page.goto(url),
    reload: () => page.reload(),
    type: (text) => page.type("#text", text),
    run: /** @type {any} */ (page.evaluate.bind(page)),
  };
}

/** By WebKitWebDriver, on a display of its own. @param {TestContext} t @returns {Promise<Browser>} */
async function webkit(t) {
  const [binary] = shell("ls /usr/lib/*/webkit2gtk-4.*/MiniBrowser", folder).split("\n");
  const display = spawn("Xvfb", ["-displayfd", "1", "-nolisten", "tcp"], { stdio: ["ignore", "pipe", "ignore"] });
  const [number] = await once(display.stdout, "data");
  const home = shell("mktemp -d", folder).trim(); // what a browser keeps
  const env = { PATH: process.env.PATH, HOME: home, XDG_RUNTIME_DIR: home, DISPLAY: `:${String(number).trim()}`, LIBGL_ALWAYS_SOFTWARE: "1" };
  const port = 20000 + (process.pid % 20000);
  const server = spawn("WebKitWebDriver", [`--port=${port}`], { env, stdio: "ignore" });
  const up = () => fetch(`http://127.0.0.1:${port}/status`).then(({ ok }) => ok, () => false);
  while (server.exitCode === null && !(await up())) await new Promise((resolve) => setTimeout(resolve, 50));
  const options = { binary, args: ["--automation"] };
  const driver = await new Builder()
    .usingServer(`http://127.0.0.1:${port}`)
    .withCapabilities({ browserName: "MiniBrowser", "webkitgtk:browserOptions": options })
    .build();
  t.after(async () => {
    await driver.quit();
    server.kill();
    display.kill();
    rmSync(home, { recursive: true, force: true });
  });
  return {
    go: (url) => driver.get(url),
    reload: () => driver.navigate().refresh(),
    type: (text) => driver.findElement(By.id("text")).sendKeys(text),
    run: /** @type {any} */ (driver.executeScript.bind(driver)),
  };
}

/** Until `work` gives something, which it returns. @template T @param {Browser} browser @param {() => T} work */
async function until(browser, work) {
  for (const end = Date.now() + WAIT_MS; Date.now() < end; await new Promise((resolve) => setTimeout(resolve, 100))) {
    const found = await browser.run(work);
    if (found) return found;
  }
  throw new Error(`${WAIT_MS} ms without ${work}`);
}

const ready = () => document.querySelector("#model")?.childElementCount && !document.querySelector("#go:disabled");
const kept = async () =>
  (await navigator.serviceWorker.ready).active?.state === "activated" &&
  (await (await caches.open("tsm")).keys()).some(({ url }) => url.includes(".tflite?"));
const written = () => /^120 bytes .* seed 7$/.test(document.querySelector("#speed")?.textContent ?? "") && !document.querySelector("#stop:not(:disabled)");

for (const [name, start] of /** @type {const} */ ([["Firefox ESR", firefox], ["WebKitGTK", webkit]])) {
  test(`${name}: all that checks.js checks`, async (t) => {
    const { "page.js": code, ...files } = checksPage("./web", "{}");
    const url = await serve(t, join(root, "apps"), {
      ...files,
      "page.js": `const report = (found) => (globalThis.reported = found);\naddEventListener("error", ({ message }) => report(message));\n${code}`,
    });
    const browser = await start(t);
    await browser.go(`${url}index.html`);
    const found = await until(browser, () => /** @type {any} */ (globalThis).reported);
    assert.equal(found[0], 14, found);
  });

  test(`${name}: the app loads, suggests, goes offline, generates generate.py's text`, async (t) => {
    const site = await host(`${folder}/site`);
    t.after(() => site.stop());
    const browser = await start(t);
    await browser.go(site.url);
    await until(browser, ready);
    await until(browser, kept);
    await site.stop();
    await assert.rejects(fetch(site.url));
    await browser.reload();
    await until(browser, ready);
    await browser.type("What shall I d");
    assert.equal(await until(browser, () => document.querySelector("#ghost")?.textContent), "o");
    const prompt = "JULIET:\n";
    await browser.run((prompt) => {
      const settings = { seed: "7", bytes: "120", temperature: "0.7", topP: "0.9" };
      for (const [name, value] of Object.entries(settings)) /** @type {HTMLInputElement} */ (document.querySelector(`[name=${name}]`)).value = value;
      const area = /** @type {HTMLTextAreaElement} */ (document.querySelector("#text"));
      area.value = prompt;
      area.setSelectionRange(prompt.length, prompt.length);
      /** @type {HTMLButtonElement} */ (document.querySelector("#go")).click();
    }, prompt);
    await until(browser, written);
    const found = await browser.run(() => /** @type {HTMLTextAreaElement} */ (document.querySelector("#text")).value);
    const args = ["--prompt", prompt, "--seed", "7", "--bytes", "120", "--temperature", "0.7", "--top-p", "0.9"];
    const wanted = execFileSync("python3", [join(root, "runtime/generate.py"), ...args], { encoding: "utf8" });
    assert.equal(found.trimEnd(), (wanted.startsWith(prompt) ? wanted : prompt + wanted).trimEnd());
  });
}

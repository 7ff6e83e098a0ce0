/* The web app, as build.sh puts it together, in Debian's Chromium: on a desktop and a phone, with its server
 * and without. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { blocks, clone, host, hostBy, root, shell } from "./place.js";

/** @import { BrowserContextOptions, Page } from "playwright-core" */

const DESKTOP = { viewport: { width: 1280, height: 800 } };
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };
const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const model = join(root, "runtime/shakespeare-int8.tflite");
const folder = clone();
/** @type {import("playwright-core").Browser} */
let browser;
/** @type {Awaited<ReturnType<typeof host>>} */
let site;

before(async () => {
  shell(`sh ${join(root, "apps/web/app/build.sh")} ${folder}/site/sub/path`, folder);
  site = await host(`${folder}/site`);
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args });
});
after(async () => {
  await browser?.close();
  await site?.stop();
});

/** A page whose console must stay clean, in a browser that knows nothing yet.
 * @param {import("node:test").TestContext} t @param {BrowserContextOptions} options */
async function visit(t, options = DESKTOP, url = `${site.url}sub/path/`) {
  const context = await browser.newContext(options);
  context.setDefaultTimeout(15000);
  const page = await context.newPage();
  /** @type {string[]} */
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  t.after(async () => {
    await context.close();
    assert.deepEqual(wrong, []);
  });
  await page.goto(url);
  await ready(page);
  return page;
}

/** @param {Page} page */
const ready = (page) => page.waitForFunction(() => document.querySelector("#model")?.childElementCount && !document.querySelector("#go:disabled"));
/** @param {Page} page */
const ghost = (page) => page.locator("#ghost").textContent();
/** @param {Page} page */
const text = (page) => page.locator("#text").inputValue();
/** @param {Page} page */
const written = (page) => page.locator("#stop:disabled").waitFor();
/** @param {Page} page @param {string} pattern */
const told = (page, pattern) => page.locator("#speed", { hasText: new RegExp(pattern) }).waitFor();

/** Types, until a suggestion stands. @param {Page} page @param {string} typed */
async function suggested(page, typed = "ROMEO:\nWhat shall I d") {
  await page.locator("#text").pressSequentially(typed);
  await page.waitForFunction(() => document.querySelector("#ghost")?.textContent);
  return settled(page);
}

/** Until nothing comes any more. @param {Page} page */
async function settled(page) {
  for (let before = ""; ; ) {
    await page.waitForTimeout(200);
    const now = (await ghost(page)) ?? "";
    if (now === before) return now;
    before = now;
  }
}

/** @param {Page} page @param {Record<string, string>} settings */
async function choose(page, settings) {
  await page.locator("details.card").evaluate((details) => details.setAttribute("open", ""));
  for (const [name, value] of Object.entries(settings)) await page.locator(`input[name=${name}], input#${name}`).fill(value);
}

/** @param {string[]} args */
const python = (...args) => execFileSync("python3", [join(root, "runtime/generate.py"), ...args], { encoding: "utf8" });

/** Generates in the page and by generate.py. @param {Page} page @param {string} prompt @param {string} [file] */
async function sameAsPython(page, prompt, file = model) {
  await choose(page, { seed: "7", bytes: "120", temperature: "0.7", topP: "0.9", stop: "" });
  await page.locator("#text").fill(prompt);
  await page.locator("#go").click();
  await told(page, "120 bytes · [\\d,]+ bytes/s · [\\d.]+ MB of memory · seed 7");
  await written(page);
  const wanted = python(file, "--prompt", prompt, "--seed", "7", "--bytes", "120", "--temperature", "0.7", "--top-p", "0.9");
  assert.equal((await text(page)).trimEnd(), (wanted.startsWith(prompt) ? wanted : prompt + wanted).trimEnd());
}

/** @param {string} at @returns {number} */
const size = (at) => statSync(at).isDirectory() ? readdirSync(at).reduce((sum, name) => sum + size(join(at, name)), 0) : statSync(at).size;

test("its size", () => {
  const bytes = size(join(folder, "site/sub/path"));
  assert.ok(bytes <= 10.5e6, `${bytes} bytes`);
});

test("with a model in int4: its size, and generate.py's text", async (t) => {
  const int4 = join(root, "build/int4.tflite");
  shell(`sh ${join(root, "apps/web/app/build.sh")} ${folder}/site/int4 ${int4}`, folder);
  const bytes = size(join(folder, "site/int4"));
  assert.ok(bytes <= 6e6, `${bytes} bytes`);
  const page = await visit(t, PHONE, `${site.url}int4/`);
  await page.locator("#model dd", { hasText: "int4" }).first().waitFor();
  await sameAsPython(page, "ROMEO:\n", int4);
});

test("the development build: other engines on the same prompt, and none of them in the shipped one", async (t) => {
  shell(`sh ${join(root, "apps/web/app/build.sh")} --compare ${folder}/site/dev`, folder);
  const context = await browser.newContext(DESKTOP);
  t.after(() => context.close());
  const page = await context.newPage();
  await page.goto(`${site.url}dev/`);
  await ready(page);
  await page.locator("#text").fill("JULIET:\n".repeat(20));
  const engines = await page.locator("#engine option").allTextContents();
  assert.deepEqual(engines, ["TSM", "LiteRT.js", "onnxruntime-web"]);
  const texts = [];
  for (const [i, engine] of engines.entries()) {
    await page.locator("#engine").selectOption(engine);
    await page.locator("#compare").click();
    await page.locator("#compared tr").nth(i).waitFor({ timeout: 60000 });
    const [name, read, generated, written] = await page.locator("#compared tr").nth(i).locator("td").allTextContents();
    assert.equal(name, engine);
    for (const rate of [read, generated]) assert.ok(Number(rate.replaceAll(",", "")) > 10, `${engine}: ${rate}`);
    texts.push(written);
  }
  assert.equal(texts[0].length, 300);
  assert.deepEqual(texts, Array(3).fill(texts[0]));
  const shipped = readdirSync(join(folder, "site/sub/path"), { recursive: true }).join();
  assert.doesNotMatch(shipped, /compare|litert|onnxruntime|ort-/);
});

for (const [name, options] of /** @type {const} */ ([["desktop", DESKTOP], ["phone", PHONE]]))
  test(`${name}: loads, goes offline, generates generate.py's text`, async (t) => {
    const own = await host(`${folder}/site`);
    t.after(() => own.stop());
    const page = await visit(t, options, `${own.url}sub/path/`);
    await page.waitForFunction(async () => (await navigator.serviceWorker.ready).active?.state === "activated");
    await page.waitForFunction(async () => (await (await caches.open("tsm")).keys()).some(({ url }) => url.includes(".tflite?")));
    await own.stop();
    await assert.rejects(fetch(own.url));
    await page.reload();
    await ready(page);
    await sameAsPython(page, "JULIET:\n");
    const width = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(width <= 0, `${width} px too wide`);
  });

test("a new version replaces what was kept of the old one", async (t) => {
  const out = join(folder, "site/update");
  shell(`cp -r ${folder}/site/sub/path ${out}`, folder);
  const page = await visit(t, DESKTOP, `${site.url}update/`);
  const keys = () => page.evaluate(async () => (await (await caches.open("tsm")).keys()).map(({ url }) => url));
  await page.waitForFunction(async () => (await navigator.serviceWorker.ready).active?.state === "activated");
  await page.waitForFunction(async () => (await (await caches.open("tsm")).keys()).some(({ url }) => url.includes(".tflite?")));
  const before = await keys();
  const css = `${readFileSync(join(out, "app.css"))}h1 { letter-spacing: 3px; }\n`;
  writeFileSync(join(out, "app.css"), css);
  const hashes = readFileSync(join(out, "hashes.js"), "utf8");
  const hash = createHash("sha256").update(css).digest("base64");
  writeFileSync(join(out, "hashes.js"), hashes.replace(/("app.css": "sha256-)[^"]*/, `$1${hash}`));
  await page.reload();
  await page.locator("#notice", { hasText: "A new version is there." }).waitFor();
  await page.getByRole("button", { name: "Reload" }).click();
  await page.waitForFunction(() => getComputedStyle(/** @type {Element} */ (document.querySelector("h1"))).letterSpacing === "3px");
  await page.waitForFunction(async (count) => (await (await caches.open("tsm")).keys()).length === count, before.length);
  const now = await keys();
  assert.deepEqual(now.filter((key) => !before.includes(key)).map((key) => decodeURIComponent(key).split("sha256-")[1]), [hash]);
  await ready(page);
});

test("a model that came damaged is told in a line, and not kept", async (t) => {
  const out = join(folder, "site/damaged");
  shell(`cp -r ${folder}/site/sub/path ${out}`, folder);
  const bytes = readFileSync(model);
  bytes[bytes.length >> 1] ^= 1;
  writeFileSync(join(out, "shakespeare-int8.tflite"), bytes);
  const context = await browser.newContext(DESKTOP);
  t.after(() => context.close());
  const page = await context.newPage();
  await page.goto(`${site.url}damaged/`);
  await told(page, "CRC");
  await page.waitForFunction(async () => (await navigator.serviceWorker.ready).active?.state === "activated");
  const kept = await page.evaluate(async () => (await (await caches.open("tsm")).keys()).map(({ url }) => url));
  assert.ok(kept.length > 10 && !kept.some((url) => url.includes(".tflite")), `${kept}`);
});

test("it can be installed", async (t) => {
  const page = await visit(t);
  const session = await page.context().newCDPSession(page);
  const { errors, data } = await session.send("Page.getAppManifest");
  assert.deepEqual(errors, []);
  const { icons, display } = JSON.parse(data ?? "");
  assert.equal(display, "standalone");
  for (const { src, sizes } of icons.filter((/** @type {any} */ icon) => icon.src.endsWith(".png"))) {
    const png = readFileSync(join(folder, "site/sub/path", src));
    assert.equal(`${png.readUInt32BE(16)}x${png.readUInt32BE(20)}`, sizes);
  }
});

for (const colorScheme of /** @type {const} */ (["light", "dark"]))
  for (const options of [DESKTOP, PHONE])
    test(`axe finds nothing: ${colorScheme}, ${options.viewport.width} px`, async (t) => {
      const page = await visit(t, { ...options, colorScheme, bypassCSP: true });
      await choose(page, {});
      await page.locator("#scored").fill("To be, or not to be: that is the xylophone.\n");
      await page.locator("#table-details summary").click();
      await page.locator("#mean", { hasText: "44 bytes" }).waitFor();
      await suggested(page);
      await page.locator("#sessions li").first().waitFor();
      await page.addScriptTag({ path: axe });
      const { violations } = await page.evaluate(() => /** @type {any} */ (window).axe.run());
      assert.deepEqual(violations.map((/** @type {any} */ it) => [it.id, it.nodes.map((/** @type {any} */ node) => node.html)]), []);
      const small = await page.locator("button:visible, .button:visible, input:not(.file):visible, select, summary:visible").evaluateAll((all) =>
        all.filter((each) => each.getBoundingClientRect().height < 44).map((each) => each.outerHTML));
      assert.deepEqual(small, [], "44 px");
    });

test("the theme can be chosen, and stays", async (t) => {
  const page = await visit(t);
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await page.locator("#theme").selectOption("dark");
  assert.notEqual(await background(), light);
  await page.reload();
  await ready(page);
  assert.notEqual(await background(), light);
});

test("a suggestion: Tab takes a word, the right arrow all, Esc none", async (t) => {
  const page = await visit(t);
  await choose(page, { threshold: "1" });
  const typed = "ROMEO:\nWhat shall I d";
  const first = await suggested(page, typed);
  await page.keyboard.press("Tab");
  const word = /^\s*\S+/.exec(first)?.[0];
  assert.equal(await text(page), typed + word);
  assert.ok((await settled(page)).startsWith(first.slice(word?.length)), "the rest stays");
  const rest = await ghost(page);
  await page.keyboard.press("ArrowRight");
  assert.equal(await text(page), typed + word + rest);
  await settled(page);
  await page.keyboard.press("Control+z");
  await page.keyboard.press("Control+z");
  assert.equal((await text(page)).slice(0, typed.length), typed.slice(0, (await text(page)).length), "undone");
  assert.ok((await text(page)).length < (typed + word + rest).length);
  await page.locator("#text").fill("");
  const again = await suggested(page, typed);
  assert.equal(again, first, "the same text, the same suggestion");
  await page.keyboard.press("Escape");
  assert.equal(await ghost(page), "");
  assert.equal(await text(page), typed);
  await page.keyboard.press("Tab");
  assert.notEqual(await page.evaluate(() => document.activeElement?.id), "text", "Tab leaves");
});

test("a suggestion: typed along it stays, a deletion goes back, other keys drop it", async (t) => {
  const page = await visit(t);
  await choose(page, { threshold: "1" });
  const typed = "JULIET:\nO my l";
  const first = await suggested(page, typed);
  await page.evaluate(() => {
    /** @type {unknown[]} */
    const seen = (/** @type {any} */ (window).seen = []);
    new MutationObserver(() => seen.push(document.querySelector("#ghost")?.textContent)).observe(
      /** @type {Element} */ (document.querySelector("#ghost")), { childList: true, characterData: true, subtree: true });
  });
  await page.keyboard.type(first[0]);
  await settled(page);
  const seen = await page.evaluate(() => /** @type {any} */ (window).seen);
  assert.ok(seen.every((/** @type {string} */ it, /** @type {number} */ i) => it.startsWith(i ? seen[i - 1] : first.slice(1))), `it shrank: ${seen}`);
  await page.keyboard.press("Backspace");
  assert.equal(await settled(page), first);
  await page.keyboard.press("ArrowLeft");
  assert.equal(await settled(page), "", "the cursor has moved");
  assert.equal(await text(page), typed);
  await page.keyboard.press("Tab");
  assert.notEqual(await page.evaluate(() => document.activeElement?.id), "text", "no suggestion, no trap");
});

test("a typing error: Tab puts what was meant in place of the word, and one step undoes it", async (t) => {
  const page = await visit(t);
  const typed = "ROMEO:\nI do beseech yuo";
  await page.locator("#text").pressSequentially(typed);
  await page.waitForFunction(() => document.querySelector("#ghost.meant")?.textContent?.startsWith("you"));
  await page.locator("#live", { hasText: "Suggested: you instead of yuo" }).waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await text(page), "ROMEO:\nI do beseech you");
  assert.equal(await page.locator("#ghost.meant").count(), 0);
  await page.keyboard.press("Control+z");
  assert.equal(await text(page), typed);
});

test("a suggestion after a long text stands beside the cursor, in view", async (t) => {
  const page = await visit(t, PHONE);
  await choose(page, { threshold: "1" });
  await page.locator("#text").fill("ROMEO:\nI will not speak to thee.\n".repeat(30));
  await suggested(page, "I will not sp");
  const [ghost, pad, scrolled] = await page.evaluate(() => {
    const [ghost, pad, area] = ["#ghost", ".pad", "#text"].map((each) => /** @type {Element} */ (document.querySelector(each)));
    return [ghost.getBoundingClientRect(), pad.getBoundingClientRect(), area.scrollTop];
  });
  assert.equal(scrolled, 0, "the text has not moved within its mirror");
  assert.ok(ghost.top > pad.top && ghost.bottom < pad.bottom, `${ghost.top} to ${ghost.bottom} in ${pad.top} to ${pad.bottom}`);
});

test("an unsure model suggests nothing; nothing comes while composing", async (t) => {
  const page = await visit(t);
  await choose(page, { threshold: "100" });
  await page.locator("#text").pressSequentially("ROMEO:\nWhat shall I d");
  assert.equal(await settled(page), "");
  await choose(page, { threshold: "1" });
  await page.locator("#text").focus();
  const session = await page.context().newCDPSession(page);
  await session.send("Input.imeSetComposition", { text: "か", selectionStart: 1, selectionEnd: 1 });
  assert.equal(await settled(page), "");
  await session.send("Input.insertText", { text: "o" });
  await page.waitForFunction(() => document.querySelector("#ghost")?.textContent);
});

test("for a screen reader", async (t) => {
  const page = await visit(t);
  const shown = await suggested(page);
  await page.locator("#live", { hasText: `Suggested: ${shown}` }).waitFor();
  assert.equal(await page.locator("[aria-live]").count(), 1);
  assert.equal(await page.locator(".mirror").getAttribute("aria-hidden"), "true");
});

test("nothing comes after a stop, and one step undoes it", async (t) => {
  const page = await visit(t);
  await choose(page, { bytes: "100000", seed: "3" });
  await page.locator("#text").fill("ROMEO:\n");
  await page.locator("#go").click();
  await page.waitForFunction(() => (document.querySelector("#ghost")?.textContent ?? "").length > 20);
  await page.locator("#stop").click();
  await told(page, "Stopped · \\d+ bytes");
  const stopped = await text(page);
  assert.ok(stopped.length > 27);
  await page.waitForTimeout(500);
  assert.equal(await text(page), stopped);
  await page.locator("#text").focus();
  await page.keyboard.press("Control+z");
  assert.equal(await text(page), "ROMEO:\n");
});

test("another session stops what is written, which stays with its own", async (t) => {
  const page = await visit(t);
  await choose(page, { bytes: "100000" });
  await page.locator("#text").fill("ROMEO:\n");
  await page.locator("#go").click();
  await page.waitForFunction(() => (document.querySelector("#ghost")?.textContent ?? "").length > 20);
  await page.locator("#new").click();
  await page.waitForFunction(() => !(/** @type {HTMLTextAreaElement} */ (document.querySelector("#text")).value));
  await page.waitForTimeout(500);
  assert.equal(await text(page), "");
  await page.locator("#sessions .name").click();
  await page.waitForFunction(() => /** @type {HTMLTextAreaElement} */ (document.querySelector("#text")).value.length > 27);
});

test("settings out of range are told in a line", async (t) => {
  const page = await visit(t);
  await choose(page, { topP: "7" });
  await page.locator("#go").click();
  await told(page, "topP");
  await choose(page, { topP: "1", seed: "x" });
  await page.locator("#go").click();
  await told(page, "seed: found x, wanted a whole number");
});

test("the model's text is text", async (t) => {
  const page = await visit(t);
  await page.locator("#scored").fill("<img src=x onerror=alert(1)>");
  await page.locator("#mean", { hasText: "28 bytes" }).waitFor();
  assert.equal(await page.locator("#heat").textContent(), "<img src=x onerror=alert(1)>");
  assert.equal(await page.locator("#heat img").count(), 0);
});

test("surprise is that of score.py, by character", async (t) => {
  const page = await visit(t);
  const scored = "Rômeo, ☃ wherefore art thou?\n".repeat(9);
  await page.locator("#scored").fill(scored);
  const { length } = new TextEncoder().encode(scored);
  await page.locator("#mean", { hasText: `${length} bytes` }).waitFor();
  writeFileSync(join(folder, "scored.txt"), `\n${scored}`); // score.py leaves its first byte out
  const found = JSON.parse(execFileSync("python3", [join(root, "runtime/score.py"), join(folder, "scored.txt"), "--json"], { encoding: "utf8" }).split("\n")[0]);
  const mean = Number(/^[\d.]+/.exec((await page.locator("#mean").textContent()) ?? "")?.[0]);
  assert.ok(Math.abs(mean - found.nats_per_byte) < 0.006, `${mean}, wanted ${found.nats_per_byte}`);
  assert.equal(await page.locator("#heat span").count(), [...scored].length);
  await page.locator("#table-details summary").click();
  await page.waitForFunction((count) => document.querySelectorAll("#table tr").length === count, [...scored].length);
  assert.deepEqual(await page.locator("#table tr").nth(1).locator("td").allTextContents().then((all) => all.slice(0, 2)), ["ô", "c3 b4"]);
});

test("sessions survive a reload, are renamed and deleted; their state goes on in Python and back", async (t) => {
  const page = await visit(t);
  await page.locator("#text").pressSequentially("JULIET:\nO Romeo");
  await page.locator("#sessions li", { hasText: "JULIET" }).waitFor();
  await page.reload();
  await ready(page);
  await page.waitForFunction(() => /** @type {any} */ (document.querySelector("#text")).value);
  assert.equal(await text(page), "JULIET:\nO Romeo");

  page.once("dialog", (dialog) => dialog.accept("Balcony"));
  await page.getByRole("button", { name: "Rename JULIET:" }).click();
  await page.locator("#sessions .name", { hasText: "Balcony" }).waitFor();
  await choose(page, { seed: "11", temperature: "0.6", bytes: "80" });
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export Balcony" }).click()]);
  assert.equal(file.suggestedFilename(), "Balcony.tsmstate");
  const state = join(folder, "Balcony.tsmstate");
  await file.saveAs(state);
  const fromState = python("--load-state", state, "--bytes", "80");
  const whole = python("--prompt", "JULIET:\nO Romeo", "--seed", "11", "--temperature", "0.6", "--bytes", "80");
  assert.ok(whole.trimEnd().endsWith(fromState.trim()) && fromState.length > 40, `${fromState}\n-\n${whole}`);

  await page.locator("#new").click();
  assert.equal(await text(page), "");
  await page.locator("#import").setInputFiles(state);
  await told(page, "Imported Balcony.tsmstate");
  assert.equal(await text(page), "JULIET:\nO Romeo");
  assert.equal(await page.locator("[name=seed]").inputValue(), "11");
  await page.locator("#go").click();
  await told(page, "80 bytes");
  await written(page);
  assert.ok((await text(page)).trimEnd().endsWith(fromState.trim()));

  const damaged = readFileSync(state);
  damaged[damaged.length - 9] ^= 1;
  await page.locator("#import").setInputFiles({ name: "bad.tsmstate", mimeType: "", buffer: damaged });
  await told(page, "^bad.tsmstate: ");
  for (let left = await page.locator("#sessions li").count(); left; left--) {
    page.once("dialog", (dialog) => dialog.accept());
    await page.locator("#sessions li").first().getByRole("button", { name: "Delete" }).click();
    await page.waitForFunction((count) => document.querySelectorAll("#sessions li").length < count, left);
  }
  assert.equal(await text(page), "");
});

test("one's own model: opened and dropped; a damaged one is refused in a line", async (t) => {
  const page = await visit(t);
  const rows = () => page.locator("#model dd").allTextContents();
  const [name, , sha256, license] = await rows();
  assert.deepEqual([name, sha256.length, license], ["shakespeare-int8.tflite", 64, "Apache-2.0"]);
  const bytes = readFileSync(model);
  const damaged = Buffer.from(bytes);
  damaged[damaged.length >> 1] ^= 1;
  await page.locator("#open").setInputFiles({ name: "bad.tflite", mimeType: "", buffer: damaged });
  await page.locator("#model-error", { hasText: /^bad\.tflite: .+/ }).waitFor();
  assert.equal((await rows())[0], name, "the one before stays");
  writeFileSync(join(folder, "mine.tflite"), bytes);
  await page.locator("#open").setInputFiles(join(folder, "mine.tflite"));
  await page.locator("#model dd", { hasText: "mine.tflite" }).waitFor();
  assert.equal(await page.locator("#model-error").isVisible(), false);
  await page.evaluate(async () => {
    const data = new DataTransfer();
    data.items.add(new File([await (await fetch("shakespeare-int8.tflite")).arrayBuffer()], "dropped.tflite"));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
  });
  await page.locator("#model dd", { hasText: "dropped.tflite" }).waitFor();
  await sameAsPython(page, "ROMEO:\n");
  await page.locator("#open").setInputFiles(join(root, "models/shakespeare-int8.onnx"));
  await page.locator("#model dd", { hasText: "shakespeare-int8.onnx" }).waitFor();
  await sameAsPython(page, "JULIET:\n");
});

test("an engine that traps: the page offers a restart", async (t) => {
  const context = await browser.newContext(DESKTOP);
  t.after(() => context.close());
  const page = await context.newPage();
  await page.addInitScript(() => {
    const { instantiate } = WebAssembly;
    WebAssembly.instantiate = /** @type {any} */ (async (/** @type {WebAssembly.Module} */ module) => {
      const { exports } = await instantiate(module);
      const trap = () => { throw new WebAssembly.RuntimeError("unreachable"); };
      return { exports: new Proxy({ ...exports }, {
        get: (all, name) => (/** @type {any} */ (window).trapping && name === "tsm_generate" ? trap : all[String(name)]),
      }) };
    });
  });
  await page.goto(`${site.url}sub/path/`);
  await ready(page);
  await page.locator("#text").fill("ROMEO:\n");
  await page.evaluate(() => (/** @type {any} */ (window).trapping = true));
  await page.locator("#go").click();
  await page.locator("#notice", { hasText: "Your text is still here" }).waitFor();
  await page.evaluate(() => (/** @type {any} */ (window).trapping = false));
  await page.getByRole("button", { name: "Restart the engine" }).click();
  await page.locator("#speed", { hasText: "Ready" }).waitFor();
  await sameAsPython(page, "ROMEO:\n");
});

test("the README's commands", async (t) => {
  const [command] = blocks("apps/web/app/README.md", "sh");
  const [build, serve] = command.trim().split("\n");
  shell(build, folder);
  const own = await hostBy(serve, folder);
  t.after(() => own.stop());
  const page = await visit(t, DESKTOP, `http://127.0.0.1:${own.port}/`);
  await sameAsPython(page, "ROMEO:\n");
});

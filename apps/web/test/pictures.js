/* Draws the icons of the web app and takes the pictures in docs/: node apps/web/test/pictures.js, after
 * make web-app. Each is to be looked at. */

import { execFileSync, spawn } from "node:child_process";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { root } from "./place.js";

const app = join(root, "apps/web/app");
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
const icon = await browser.newPage();
await icon.goto(`file://${app}/icon.svg`);
for (const size of [192, 512]) {
  await icon.setViewportSize({ width: size, height: size });
  await icon.screenshot({ path: join(app, `icon-${size}.png`) });
}
execFileSync("sh", [join(app, "build.sh"), join(root, "build/web-app")]);

const args = ["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", join(root, "build/web-app")];
const server = spawn("python3", args, { stdio: ["ignore", "pipe", "ignore"] });
const [, port] = /port (\d+)/.exec(await new Promise((resolve) => server.stdout.once("data", (data) => resolve(String(data))))) ?? [];
const SIZES = {
  "": { viewport: { width: 1280, height: 900 } },
  "-phone": { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true },
};
for (const colorScheme of /** @type {const} */ (["light", "dark"]))
  for (const [name, options] of Object.entries(SIZES)) {
    const context = await browser.newContext({ ...options, colorScheme });
    const page = await context.newPage();
    await page.goto(`http://127.0.0.1:${port}/`);
    await page.locator("#go:enabled").waitFor();
    await page.locator("#scored").fill("But soft, what light through yonder Window breaks?\nIt is the East, and Juliet is the xylophone.");
    await page.locator("#mean", { hasText: /./ }).waitFor();
    await page.locator("[name=seed]").evaluate((field) => (/** @type {HTMLInputElement} */ (field).value = "4"));
    await page.locator("[name=bytes]").evaluate((field) => (/** @type {HTMLInputElement} */ (field).value = "200"));
    await page.locator("#text").fill("JULIET:\nO Romeo, Romeo! wherefore art thou ");
    await page.locator("#go").click();
    await page.locator("#speed", { hasText: "200 bytes" }).waitFor();
    await page.locator("#text").focus();
    await page.locator("#text").pressSequentially("\n\nROMEO:\nI will not sp");
    await page.locator("#live", { hasText: "Suggested" }).waitFor({ state: "attached" });
    await page.locator("#sessions li").first().waitFor();
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: join(root, `docs/web-${colorScheme}${name}.png`), fullPage: !name });
    await context.close();
  }
await browser.close();
server.kill();

/* Where the package is tested as users have it: packed, installed, served and opened in Chromium. */

import { execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { delimiter, extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";

export const root = fileURLToPath(new URL("../../..", import.meta.url));
const modules = join(root, "apps/node_modules");
export const bun = join(modules, "@oven/bun-linux-x64/bin/bun");
export const deno = join(modules, "@deno/linux-x64-glibc/deno");
export const node = (/** @type {20 | 22} */ version) => join(modules, `node-${version}/bin/node`);
export const env = {
  ...process.env,
  PATH: join(modules, ".bin") + delimiter + process.env.PATH,
  npm_config_offline: "true",
  npm_config_audit: "false",
};
/** What a strict page allows. */
export const POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'";
const TYPES = /** @type {Record<string, string>} */ ({
  ".html": "text/html",
  ".js": "text/javascript",
  ".wasm": "application/wasm",
});

/** The code blocks of a README in a language. @param {string} readme @param {string} language */
export function blocks(readme, language) {
  const text = readFileSync(join(root, readme), "utf8");
  return [...text.matchAll(new RegExp(`\`\`\`${language}\n(.*?)\`\`\``, "gs"))].map(([, block]) => block);
}

/** @param {string} script @param {string} cwd */
export function shell(script, cwd) {
  return execFileSync("bash", ["-ec", script], {
    cwd,
    env,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
}

/** A folder that looks like a clone of the project, for what a README says to do there. */
export function clone() {
  const folder = mkdtempSync(join(tmpdir(), "tsm-"));
  for (const entry of readdirSync(root))
    if (entry !== ".git") symlinkSync(join(root, entry), join(folder, entry));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A folder as https servers give it: at a path of its own, with a policy. `/gzip/` and `/cut/` of it are
 * compressed and break off. @param {import("node:test").TestContext} t
 * @param {string} folder @param {Record<string, string>} pages by name, besides */
export async function serve(t, folder, pages) {
  const server = createServer((request, response) => {
    const [, how, path] = /^\/(deep\/er|gzip|cut)\/([^?]*)/.exec(request.url ?? "") ?? [];
    const file = join(folder, path ?? "");
    if (request.url === "/favicon.ico") return response.writeHead(204).end();
    if (!how || path.includes("..") || !(path in pages || (existsSync(file) && extname(file))))
      return response.writeHead(404).end();
    let body = path in pages ? Buffer.from(pages[path]) : readFileSync(file);
    response.setHeader("content-security-policy", POLICY);
    response.setHeader("content-type", TYPES[extname(path)] ?? "application/octet-stream");
    if (how === "gzip") {
      response.setHeader("content-encoding", "gzip");
      body = gzipSync(body, { level: 1 });
    }
    response.setHeader("content-length", body.length);
    if (how !== "cut") return response.end(body);
    response.write(body.subarray(0, body.length / 2), () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  t.after(() => server.close());
  return `http://127.0.0.1:${port}/deep/er/`;
}

/** A folder as Python serves it, until it is stopped. @param {string} folder */
export function host(folder) {
  return hostBy("python3 -m http.server 0 --bind 127.0.0.1 --directory .", folder);
}

/** A server of Python's, and how to stop it. @param {string} command @param {string} folder */
export async function hostBy(command, folder) {
  const [program, ...args] = command.split(" ");
  const child = spawn(program, args, { cwd: folder, env: { ...env, PYTHONUNBUFFERED: "1" }, stdio: ["ignore", "pipe", "ignore"] });
  const closed = new Promise((resolve) => child.once("close", resolve));
  const said = await Promise.race([closed, new Promise((resolve) => child.stdout.once("data", resolve))]);
  const [, port] = /port (\d+)/.exec(String(said)) ?? [];
  if (!port) throw new Error(`${command} has ended`);
  const stop = () => child.kill() && closed;
  return { url: `http://127.0.0.1:${port}/`, port, stop };
}

/** A page that calls report() with how checks.js went, and what it wants besides.
 * @param {string} packed where the package is @param {string} options of each load */
export function checksPage(packed, options) {
  return {
    "index.html": '<!doctype html><script type="module" src="page.js"></script>',
    "vectors.json": readFileSync(join(root, "tests/vectors.json"), "utf8"),
    "completions.json": readFileSync(join(root, "tests/completions.json"), "utf8"),
    "checks.js": readFileSync(join(root, "apps/web/test/checks.js"), "utf8"),
    "page.js": `
      import { TSM, TSMError } from "${packed}/index.js";
      import { checks } from "./checks.js";
      const path = "${packed}/shakespeare-int8.tflite";
      const artifact = new Uint8Array(await (await fetch(path)).arrayBuffer());
      const tests = async (name) => (await fetch(name + ".json")).json();
      const [{ vectors }, completions] = [await tests("vectors"), await tests("completions")];
      const load = ({ source = path, ...options } = {}) => TSM.load(source, { ...${options}, ...options });
      checks({ load, artifact, vectors, completions, TSMError }).then(({ done, simd }) => report([done.length, simd]), (error) => report(error.message));`,
  };
}

/** Opens a page, and gives what it calls report() with. A message of the console that is an error, a
 * violated policy too, fails. @param {string} url @param {string[]} expected */
export async function open(url, expected = []) {
  const failed = (/** @type {string} */ text) => !expected.some((part) => text.includes(part));
  const browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
  });
  try {
    const page = await browser.newPage();
    return await new Promise((resolve, reject) => {
      page.on("pageerror", reject);
      page.on("crash", () => reject(new Error("the page has crashed")));
      page.on("console", (message) => {
        const text = message.text();
        if (message.type() === "error" && failed(text)) reject(new Error(text));
      });
      page
        .exposeFunction("report", resolve)
        .then(() => page.goto(url))
        .catch(reject);
    });
  } finally {
    await browser.close();
  }
}

/** @param {string} program @param {string[]} args @param {string} [cwd] @returns {Promise<string>} */
export function run(program, args, cwd = root) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
    let out = "";
    let errors = "";
    child.stdout.on("data", (data) => (out += data));
    child.stderr.on("data", (data) => (errors += data));
    child.on("error", reject);
    child.on("close", (code) =>
      code ? reject(new Error(`${program} ${args}: ${code}\n${errors}`)) : resolve(out),
    );
  });
}

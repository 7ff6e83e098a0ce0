/* What web.py runs: `node web.mjs ROUNDS` prints a line of JSON for each engine and round, measured in
 * headless Chromium. */
import {createServer} from 'node:http';
import {readFileSync} from 'node:fs';
import {extname} from 'node:path';
import {fileURLToPath} from 'node:url';
import {brotliCompressSync} from 'node:zlib';
import {build} from 'esbuild';
import {chromium} from 'playwright-core';

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const MODULES = {
  'tsm, SIMD128': '../apps/web/tsm.wasm',
  'tsm, relaxed SIMD': '../apps/web/tsm-relaxed.wasm',
  'LiteRT.js': 'node_modules/@litertjs/core/wasm/litert_wasm_internal.wasm',
  'onnxruntime-web': 'node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm',
};
const FILES = {
  '/model.tflite': '../runtime/shakespeare-int8.tflite',
  '/model.onnx': '../models/shakespeare-int8.onnx',
  '/tsm.wasm': MODULES['tsm, SIMD128'],
  '/tsm-relaxed.wasm': MODULES['tsm, relaxed SIMD'],
};
const FOLDERS = {'/litert/': 'node_modules/@litertjs/core/wasm/', '/onnxruntime/': 'node_modules/onnxruntime-web/dist/'};
const TYPES = {'.wasm': 'application/wasm', '.js': 'text/javascript', '.mjs': 'text/javascript'};
// Without its own calls home, which a closed network refuses.
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];

const PROMPT = 'ROMEO:\n', LONG = PROMPT.repeat(147).slice(0, 1024);
const COUNT = 400; // bytes of a turn, and before the first one: a browser compiles twice

const {outputFiles: [page]} = await build({
  entryPoints: [path('web_page.mjs')],
  bundle: true,
  format: 'esm',
  write: false,
});

const server = createServer(({url}, response) => {
  const folder = Object.keys(FOLDERS).find((prefix) => url.startsWith(prefix));
  let body, type = TYPES[extname(url)] ?? 'application/octet-stream';
  if (url === '/') [body, type] = ['<!doctype html><script type=module src=page.js></script>', 'text/html'];
  else if (url === '/page.js') body = page.contents;
  else if (FILES[url]) body = readFileSync(path(FILES[url]));
  else if (folder) body = readFileSync(path(FOLDERS[folder] + url.slice(folder.length)));
  response.writeHead(body ? 200 : 404, {'Content-Type': type}).end(body);
}).listen(0, '127.0.0.1');

for (let round = 0; round < Number(process.argv[2]); round++)
  for (const [engine, module] of Object.entries(MODULES)) {
    const browser = await chromium.launch({executablePath: '/usr/bin/chromium', args: FLAGS});
    const tab = await browser.newPage();
    tab.on('pageerror', (error) => console.error(`${engine}: ${error.message}`));
    await tab.goto(`http://127.0.0.1:${server.address().port}/`);
    await tab.waitForFunction(() => window.measure);
    const found = await tab.evaluate((given) => window.measure(...given), [engine, PROMPT, LONG, COUNT, COUNT]);
    const file = readFileSync(path(module));
    const sizes = {module_bytes: file.length, module_brotli_bytes: brotliCompressSync(file).length};
    console.log(JSON.stringify({engine, browser: `Chromium ${browser.version()}`, ...found, ...sizes}));
    await browser.close();
  }
server.close();

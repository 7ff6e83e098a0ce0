/* Measures one engine in a page; bundled by web.mjs. */
import {litert, onnxruntime} from './web_engines.mjs';

/* Our module, by tsm.h: it samples by itself. */
async function tsm(module, simd) {
  const [{instance}, file] = await Promise.all([
    WebAssembly.instantiateStreaming(fetch(module)),
    fetch('model.tflite').then((response) => response.arrayBuffer()),
  ]);
  const c = instance.exports;
  const number = (at) => new DataView(c.memory.buffer).getUint32(at, true);
  const write = (bytes) => {
    const at = c.malloc(bytes.byteLength);
    new Uint8Array(c.memory.buffer).set(new Uint8Array(bytes), at);
    return at;
  };
  const out = c.malloc(8), message = c.malloc(160), sampling = c.malloc(1 << 12);
  const check = (status) => {
    if (status) throw Error(`status ${status}`);
  };
  check(c.tsm_open(write(file), file.byteLength, 0, simd, 1, out, message));
  const model = number(out);
  if (c.tsm_simd(model) !== simd) throw Error(`simd ${c.tsm_simd(model)}, wanted ${simd}`);
  c.tsm_sampling_defaults(sampling);
  new DataView(c.memory.buffer).setFloat64(sampling, 0, true); // its temperature
  check(c.tsm_stream_new(model, sampling, 0, out, message));
  const stream = number(out);
  return {
    read(tokens) {
      const at = write(tokens);
      check(c.tsm_feed(stream, at, tokens.length, message));
      c.free(at);
    },
    generate(count) {
      const bytes = [];
      for (let i = 0; i < count; i++) {
        check(c.tsm_next_byte(stream, out, message));
        bytes.push(new Uint8Array(c.memory.buffer)[out]);
      }
      return bytes;
    },
  };
}

const engines = {
  'tsm, SIMD128': () => tsm('tsm.wasm', 1),
  'tsm, relaxed SIMD': () => tsm('tsm-relaxed.wasm', 2),
  'LiteRT.js': async () => (await litert('litert/', 'model.tflite'))(),
  'onnxruntime-web': async () => (await onnxruntime('onnxruntime/', 'model.onnx'))(),
};

/* The figures of one engine, in a page that has done nothing yet. */
window.measure = async (name, prompt, long, count, warm) => {
  const bytes = (text) => new TextEncoder().encode(text);
  const rate = async (n, work) => {
    const start = performance.now();
    await work();
    return (n * 1e3) / (performance.now() - start);
  };
  const start = performance.now();
  const engine = await engines[name]();
  await engine.read(bytes(prompt));
  const text = await engine.generate(1);
  const first_byte_ms = performance.now() - start;
  text.push(...(await engine.generate(warm)));
  let bytes_per_second = 0, prompt_bytes_per_second = 0;
  for (let turn = 0; turn < 4; turn++) {
    const generate = async () => text.push(...(await engine.generate(count)));
    bytes_per_second = Math.max(bytes_per_second, await rate(count, generate));
    const read = () => engine.read(bytes(long));
    prompt_bytes_per_second = Math.max(prompt_bytes_per_second, await rate(long.length, read));
  }
  const drawn = new TextDecoder('latin1').decode(Uint8Array.from(text));
  return {first_byte_ms, bytes_per_second, prompt_bytes_per_second, text: drawn};
};

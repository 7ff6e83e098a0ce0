/* The engines that web.py and the web app's development build compare with, for a bundler: each gives a function
 * that begins a text, which reads tokens and generates the likeliest bytes. */
// @ts-nocheck

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';
import * as ort from 'onnxruntime-web/wasm';

const BLOCK = 64; // of the .tflite's `prefill`

/* One that gives logits: the likeliest byte is read next. */
function greedy(run) {
  let logits;
  const read = async (tokens) => {
    logits = await run(tokens);
  };
  return {
    read,
    async generate(count) {
      const bytes = [];
      for (let i = 0; i < count; i++) {
        const byte = logits.indexOf(Math.max(...logits));
        bytes.push(byte);
        await read(Uint8Array.of(byte));
      }
      return bytes;
    },
  };
}

/** @param {string} folder of its wasm @param {string} file a .tflite */
export async function litert(folder, file) {
  await loadLiteRt(folder);
  const model = await loadAndCompile(file, {accelerator: 'wasm', cpuOptions: {numThreads: 1}});
  const entries = {1: model.signatures.decode, [BLOCK]: model.signatures.prefill};
  return () => {
    const state = {};
    for (const {name, shape} of entries[1].getInputDetails())
      if (name !== 'tokens') state[name] = new Tensor(new Float32Array(shape.reduce((a, b) => a * b)), shape);
    return greedy(async (tokens) => {
      let logits;
      for (let at = 0; at < tokens.length; ) {
        const size = at + BLOCK <= tokens.length ? BLOCK : 1;
        const input = new Tensor(Int32Array.from(tokens.subarray(at, at + size)), [1, size]);
        const found = await entries[size].run({tokens: input, ...state});
        input.delete();
        for (const name in state) {
          state[name].delete();
          state[name] = found[`next_${name}`];
        }
        logits = found.logits.toTypedArray().slice(-256);
        found.logits.delete();
        at += size;
      }
      return logits;
    });
  };
}

/** @param {string} folder of its wasm @param {string} file a .onnx */
export async function onnxruntime(folder, file) {
  ort.env.wasm.wasmPaths = new URL(folder, location.href).href;
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(file, {executionProviders: ['wasm']});
  return () => {
    const state = {};
    for (const {name, shape} of session.inputMetadata)
      if (name !== 'tokens') state[name] = new ort.Tensor('float32', new Float32Array(shape.reduce((a, b) => a * b)), shape);
    return greedy(async (tokens) => {
      const input = new ort.Tensor('int64', BigInt64Array.from(tokens, BigInt), [1, tokens.length]);
      const found = await session.run({tokens: input, ...state});
      for (const name in state) state[name] = found[`next_${name}`];
      return found.logits.data.slice(-256);
    });
  };
}

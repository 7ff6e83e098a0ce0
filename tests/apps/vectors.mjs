/* vectors.c over WebAssembly, by the module alone: programs.py says what the lines hold.
 *
 *     node vectors.mjs MODULE MODEL SIMD < lines
 */
import {readFileSync} from 'node:fs';

const [module, path, simd] = process.argv.slice(2);
const {instance} = await WebAssembly.instantiate(readFileSync(module));
const c = instance.exports, file = readFileSync(path);
const bytes = (at, count) => Buffer.from(c.memory.buffer, at, count);
const number = (at) => bytes(at, 4).readUInt32LE();
const copy = (given) => {
  const at = c.malloc(given.length + 1);
  bytes(at, given.length).set(given);
  bytes(at + given.length, 1)[0] = 0;
  return at;
};
const out = c.malloc(8), message = c.malloc(160);
const check = (status) => {
  if (status) throw Error(`${status}: ${bytes(message, 160).toString().split('\0')[0]}`);
};

check(c.tsm_open(copy(file), file.length, 0, Number(simd), 1, out, message));
const model = number(out);
if (c.tsm_simd(model) !== Number(simd)) throw Error(`instructions ${c.tsm_simd(model)}, wanted ${simd}`);
for (const line of readFileSync(0, 'latin1').trim().split('\n')) {
  const [sampling, count, prompt, ...stops] = line.split(' ').map((part, i) => (i === 1 ? part : Buffer.from(part, 'hex')));
  const list = c.malloc(4 * stops.length + 4);
  stops.forEach((stop, i) => bytes(list + 4 * i, 4).writeUInt32LE(copy(stop)));
  check(c.tsm_stream_new(model, copy(sampling), 0, out, message));
  const text = number(out);
  check(c.tsm_feed(text, copy(prompt), prompt.length, message));
  check(c.tsm_generate(text, BigInt(count), list, stops.length, message));
  let found = '', piece;
  do {
    check(c.tsm_next(text, out, out + 4, message));
    found += piece = bytes(number(out), number(out + 4)).toString('hex');
  } while (piece);
  const room = c.tsm_save(text, 0, 0), state = c.malloc(room);
  c.tsm_save(text, state, room);
  const saved = bytes(state, room).toString('hex'), finish = c.tsm_finish_reason(text), position = c.tsm_position(text);
  check(c.tsm_logits(text, out, message));
  console.log(found, finish, String(position), saved, bytes(number(out), 1024).toString('hex'));
  c.tsm_stream_free(text);
}

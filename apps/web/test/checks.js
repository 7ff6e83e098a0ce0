/* What must hold wherever the package runs: in Node, Bun, Deno and a page, with a worker and without.
 * Each check throws what it found; `checks` calls them all. */

/** @import * as api from "../index.d.ts" */

/** @typedef {{ load(options?: api.LoadOptions & { source?: api.Source }): Promise<api.TSM>, artifact: Uint8Array,
 *   vectors: any[], completions: { passage: string, steps: any[] }, TSMError: typeof api.TSMError }} Place */

const PROMPT = "ROMEO:\n";

/** @param {Place} place */
export async function checks(place) {
  const tsm = await place.load();
  /** @type {string[]} */
  const done = [];
  for (const check of [vectors, pieces, sessions, completions, together, aborts, aborted, leaving, mistakes, states, flat])
    await check(tsm, place).then(
      () => done.push(check.name),
      (error) => {
        throw new Error(`${check.name}: ${error.stack}`);
      },
    );
  await closing(tsm, place);
  await artifacts(place);
  await loading(place);
  return { done: [...done, "closing", "artifacts", "loading"], simd: tsm.simd };
}

/** Text, logits and state of every setting are Python's. @param {api.TSM} tsm @param {Place} place */
async function vectors(tsm, { vectors }) {
  for (const { prompt, bytes, stops, settings, ...wanted } of vectors) {
    const bias = Object.entries(settings.logit_bias ?? {}).map(([byte, value]) => [byte, Number(value)]);
    /** @type {any} */
    const own = { logitBias: Object.fromEntries(bias), seed: BigInt(settings.seed) };
    for (const name of Object.keys(settings).filter((name) => !["seed", "logit_bias"].includes(name)))
      own[name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase())] = settings[name];
    const session = await tsm.session(own);
    await session.feed(prompt);
    const { text, finishReason } = await session.generate({ bytes, stop: stops });
    const { position } = session;
    const state = await session.save();
    const found = {
      text,
      finish_reason: finishReason,
      position,
      state_bytes: state.length,
      state_crc32: crc32(state),
      logits_crc32: crc32(new Uint8Array((await session.logits()).buffer)),
    };
    session.close();
    equal(found, wanted, JSON.stringify(settings));
  }
}

/** The pieces are the text; a second reader gets them, too. @param {api.TSM} tsm */
async function pieces(tsm) {
  const generation = tsm.generate(PROMPT, { bytes: 60, seed: 3 });
  const first = await collect(generation);
  const { text, seed, bytes, promptBytes, finishReason, bytesPerSecond, firstTextMs } = await generation;
  equal([first.join(""), seed, bytes, promptBytes, finishReason], [text, 3, 60, 7, "length"]);
  if (first.length < 2) throw new Error(`${first.length} piece, wanted several`);
  if (!(bytesPerSecond > 0 && firstTextMs > 0)) throw new Error(`${bytesPerSecond}, ${firstTextMs}`);
  equal(await collect(generation), first);
  const shared = tsm.generate(PROMPT, { bytes: 60, seed: 3 });
  equal((await Promise.all([collect(shared), collect(shared)])).flat().join(""), text + text, "two loops");
  const random = await tsm.generate(PROMPT, { bytes: 40 });
  equal((await tsm.generate(PROMPT, { bytes: 40, seed: random.seed })).text, random.text, "a random seed");
  equal((await tsm.generate(new TextEncoder().encode(PROMPT), { bytes: 60, seed: 3 })).text, text, "bytes");
  const japanese = await collect(tsm.generate("é日本🎭", { bytes: 60, temperature: 4, seed: 9 }));
  if (japanese.some((piece) => /[\ud800-\udbff]$|^[\udc00-\udfff]/.test(piece)))
    throw new Error("half a character");
}

/** A state is a value: forked, rewound, saved and restored it goes on to the bit. @param {api.TSM} tsm */
async function sessions(tsm) {
  const session = await tsm.session({ seed: 5, topP: 0.9, rewind: 600 });
  await session.feed(PROMPT.repeat(50));
  const fork = await session.fork();
  const saved = await session.save();
  const { text } = await session.generate({ bytes: 40 });
  equal((await fork.generate({ bytes: 40 })).text, text, "fork");
  await session.rewind(40);
  equal(await session.save(), saved, "rewound");
  equal((await session.generate({ bytes: 40 })).text, text, "after rewind");
  const again = await tsm.restore(saved, { rewind: 10 });
  equal([again.position, again.settings], [350, { ...session.settings }]);
  equal(await again.save(), saved, "restored");
  equal((await again.generate({ bytes: 40 })).text, text, "after restoring");
  const ahead = await session.generate({ bytes: 20, temperature: 0 });
  equal([session.settings.temperature, ahead.promptBytes], [0, 0], "settings hold from there on");

  const long = "Now is the winter of our discontent\n".repeat(20);
  const typed = await tsm.session({ seed: 5, rewind: 700 });
  await typed.feed(long.slice(0, 300));
  for (const key of long.slice(300)) typed.feed(key);
  let length = 720;
  for (const left of [719, 718, 690, 689, 470, 469, 310, 40]) {
    await typed.rewind(length - left);
    length = left;
    const fresh = await tsm.session({ seed: 5 });
    await fresh.feed(long.slice(0, left));
    equal(await typed.save(), await fresh.save(), `deleted down to ${left} bytes`);
    fresh.close();
  }
  typed.close();

  const scored = await tsm.session();
  const nats = await scored.score(PROMPT);
  equal([nats.length, scored.position], [7, 8], "the first byte follows a newline");
  const logits = await (await tsm.session()).logits();
  const likelihood = Math.exp(logits[82]) / logits.reduce((sum, logit) => sum + Math.exp(logit), 0);
  if (Math.abs(nats[0] + Math.log(likelihood)) > 1e-5) throw new Error(`${nats[0]}, ${-Math.log(likelihood)}`);

  const queued = await tsm.session({ seed: 5 });
  queued.feed(PROMPT); // each call waits for the one before
  const one = queued.generate({ bytes: 20 });
  const two = queued.generate({ bytes: 20 });
  const whole = await tsm.generate(PROMPT, { bytes: 40, seed: 5 });
  equal((await one).text + (await two).text, whole.text, "in order");
  for (const each of [session, fork, again, scored, queued]) each.close();
}

/** What is offered as a text is typed, corrected and jumped about in is Python's.
 * @param {api.TSM} tsm @param {Place} place */
async function completions(tsm, { completions: { passage, steps }, TSMError }) {
  const session = await tsm.session({ seed: 5 });
  await session.feed(PROMPT);
  const state = await session.save();
  for (const { begin, end, typed, to, count, max_bytes: maxBytes, threshold, completions } of steps) {
    const found = await session.complete(passage.slice(begin, end) + typed, { to, count, maxBytes, threshold });
    const shown = (/** @type {api.Completion[]} */ all) => all.map(({ text, replaced }) => [text, replaced]);
    equal(shown(found), shown(completions), JSON.stringify(typed));
    for (const [i, { probability }] of found.entries())
      if (!(Math.abs(probability - completions[i].probability) < 1e-6)) throw new Error(`${probability} of ${typed}`);
  }
  equal(await session.save(), state, "as if it had not been asked");
  let read = PROMPT;
  for (const more of ["What say you to this gentle", passage.slice(0, 5000)]) {
    session.feed(more); // the calls after it need not wait
    read += more;
    const recent = read.slice(Math.ceil(Math.max(0, read.length - 4096) / 1024) * 1024);
    const [own, given] = [undefined, recent].map((before) => session.complete(before, { count: 3, threshold: 0.01 }));
    equal([await own, (await own).length > 0], [await given, true], "what was read");
  }
  const [{ text, replaced }] = await session.complete("ROMEO:\nI do beseech yuo");
  equal([text, replaced], ["you", 3]);
  equal((await failure(() => session.complete("", { signal: AbortSignal.abort() })))?.name, "AbortError");
  const controller = new AbortController();
  const long = session.complete(passage.slice(-1000), { signal: controller.signal });
  setTimeout(() => controller.abort());
  equal((await failure(() => long))?.name, "AbortError");
  for (const option of [{ threshold: 2 }, { threshold: 0 }, { threshold: NaN }, { count: 1.5 }, { count: 0 }, { maxBytes: 0 }, { to: "page" }, { topP: 1 }]) {
    const error = await failure(() => session.complete("", /** @type {any} */ (option)));
    equal([error instanceof TSMError, error?.code], [true, "argument"]);
    if (!error.message.startsWith(Object.keys(option)[0])) throw new Error(error.message);
  }
  session.close();
}

/** Texts at the same time are those one after the other. @param {api.TSM} tsm */
async function together(tsm) {
  const seeds = [1, 2, 3];
  /** @type {string[]} */
  const order = [];
  const both = await Promise.all(
    seeds.map(async (seed) => {
      const generation = tsm.generate(PROMPT, { bytes: 80, seed });
      for await (const piece of generation) if (piece) order.push(String(seed));
      return (await generation).text;
    }),
  );
  if (order.lastIndexOf("1") < order.indexOf("3")) throw new Error(`not together: ${order.join("")}`);
  for (const seed of seeds) equal((await tsm.generate(PROMPT, { bytes: 80, seed })).text, both[seed - 1]);
}

/** No text comes after an abort, and the session can go on. @param {api.TSM} tsm */
async function aborts(tsm) {
  const session = await tsm.session({ seed: 4, rewind: 4000 });
  await session.feed(PROMPT);
  const controller = new AbortController();
  const generation = session.generate({ bytes: Infinity, signal: controller.signal });
  let count = 0;
  const error = await failure(async () => {
    for await (const piece of generation) {
      if (controller.signal.aborted) throw new Error(`${piece} came after the abort`);
      if (++count === 3) controller.abort();
    }
  });
  equal([error?.name, count], ["AbortError", 3]);
  equal((await failure(() => generation))?.name, "AbortError");
  await session.rewind(0); // waits for the call under way
  await session.rewind(session.position - 7);
  equal(
    (await session.generate({ bytes: 30 })).text,
    (await tsm.generate(PROMPT, { bytes: 30, seed: 4 })).text,
  );
  session.close();
}

/** Before it begins, while a prompt is read, while others are before it. @param {api.TSM} tsm */
async function aborted(tsm) {
  const signal = AbortSignal.abort(new Error("enough"));
  equal((await failure(() => tsm.generate(PROMPT, { signal })))?.message, "enough");
  const controller = new AbortController();
  const long = tsm.generate("x".repeat(200000), { signal: controller.signal });
  setTimeout(() => controller.abort(), 50);
  const started = performance.now();
  equal((await failure(() => long))?.name, "AbortError");
  if (performance.now() - started > 5000) throw new Error("it has read on");
  const session = await tsm.session();
  const other = new AbortController();
  const before = session.generate({ bytes: Infinity });
  const waiting = session.generate({ signal: other.signal });
  other.abort();
  equal((await failure(() => waiting))?.name, "AbortError");
  before.cancel();
  equal((await before).finishReason, "cancelled");
  session.close();
}

/** A loop that is left ends the text, where its result says. @param {api.TSM} tsm */
async function leaving(tsm) {
  const session = await tsm.session({ seed: 6, rewind: 4000 });
  await session.feed(PROMPT);
  const generation = session.generate({ bytes: Infinity });
  for await (const piece of generation) if (piece) break;
  const { text, finishReason, bytes } = await generation;
  equal([finishReason, session.position], ["cancelled", 7 + bytes]);
  const rest = await session.generate({ bytes: 30 });
  const whole = await tsm.generate(PROMPT, { bytes: bytes + 30, seed: 6 });
  equal(text + rest.text, whole.text);
  session.close();
}

/** Each is an error of one line. @param {api.TSM} tsm @param {Place} place */
async function mistakes(tsm, { TSMError }) {
  /** @type {any[]} */
  const options = [
    { topp: 0.9 },
    { topP: 0 },
    { topP: "0.9" },
    { temperature: NaN },
    { topK: 1.5 },
    { topK: 2 ** 32 },
    { penaltyWindow: 4097 },
    { repetitionPenalty: 0 },
    { minP: -1 },
    { typicalP: 2 },
    { seed: -1 },
    { seed: 2n ** 64n },
    { seed: 2 ** 53 },
    { logitBias: { 256: 1 } },
    { logitBias: { 1: 1e4 } },
    { logitBias: Object.fromEntries(Array.from({ length: 256 }, (_, byte) => [byte, -Infinity])) },
    { bytes: -1 },
    { bytes: 1.5 },
    { stop: null },
    { stop: [5] },
    { stop: "" },
    { stop: ["a", "b\0"] },
  ];
  for (const option of options) {
    const error = await failure(() => tsm.generate(PROMPT, option));
    const what = `${Object.keys(option)}: ${error}`;
    if (!(error instanceof TSMError)) throw new Error(what);
    equal([error.code, error.message.includes("\n")], ["argument", false], what);
    if (!error.message.startsWith(Object.keys(option)[0])) throw new Error(what);
  }
  const session = await tsm.session();
  for (const wrong of [
    () => session.rewind(1),
    () => session.rewind(-1),
    () => session.feed(/** @type {any} */ (3)),
    () => session.feed(/** @type {any} */ (globalThis)), // of which there is no JSON
  ])
    equal((await failure(wrong))?.code, "argument");
  equal((await failure(() => tsm.session({ rewind: 2 ** 24 + 1 })))?.code, "argument");
  const message = "bytes: found NaN, wanted a whole number, 0 to 9007199254740991";
  equal((await failure(() => session.rewind(NaN)))?.message, message);
  session.close();
}

/** Of a state each byte counts. @param {api.TSM} tsm @param {Place} place */
async function states(tsm, { TSMError }) {
  const session = await tsm.session({ seed: 1 });
  await session.feed(PROMPT);
  const state = await session.save();
  session.close();
  for (let i = 0; i < 100; i++) {
    const damaged = i % 10 ? state.slice() : state.slice(0, (i * state.length) / 100);
    if (i % 10) damaged[Math.floor((i * state.length) / 100)] ^= 1 << (i % 8);
    const error = await failure(() => tsm.restore(damaged));
    if (!(error instanceof TSMError)) throw new Error(String(error));
    equal(error.code, "state");
  }
}

/** Memory is given back. @param {api.TSM} tsm */
async function flat(tsm) {
  const once = async () => {
    const session = await tsm.session({ rewind: 1000 });
    await session.feed("x".repeat(40));
    const fork = await session.fork();
    await fork.generate({ bytes: 5, stop: ["\n\n", "KING"] });
    const again = await tsm.restore(await fork.save());
    for (const each of [session, fork, again]) each.close();
    await tsm.generate("y", { bytes: 5 });
  };
  await once();
  const { memoryBytes } = tsm;
  for (let i = 0; i < 20; i++) await once();
  equal(tsm.memoryBytes, memoryBytes);
  /** @type {api.Session[]} */
  const crowd = [];
  const error = await failure(async () => {
    for (;;) crowd.push(await tsm.session({ rewind: 2 ** 24 })); // 64 MB each, never touched
  });
  equal([error?.code, crowd.length > 8], ["memory", true], "no memory is left");
  for (const session of crowd) session.close();
  equal((await tsm.generate(PROMPT, { bytes: 10, seed: 1 })).bytes, 10, "and goes on");
}

/** What is under way and what comes later rejects. @param {api.TSM} tsm @param {Place} place */
async function closing(tsm, { TSMError }) {
  const session = await tsm.session();
  const kept = await tsm.session();
  const endless = session.generate({ bytes: Infinity });
  await endless[Symbol.asyncIterator]().next();
  const under = session.generate({ bytes: Infinity });
  session.close();
  session.close();
  equal((await failure(() => under))?.code, "closed");
  equal((await failure(() => session.feed("x")))?.code, "closed");
  const last = kept.generate({ bytes: Infinity });
  await last[Symbol.asyncIterator]().next();
  const next = tsm.generate(PROMPT, { bytes: Infinity });
  tsm.close();
  for (const call of [() => next, () => kept.save(), () => tsm.session(), () => tsm.generate("x")]) {
    const error = await failure(call);
    if (!(error instanceof TSMError)) throw new Error(String(error));
    equal(error.code, "closed");
  }
}

/** Damaged files are no models. @param {Place} place */
async function artifacts({ load, artifact }) {
  const { length } = artifact;
  const damaged = [artifact.subarray(0, 0), artifact.subarray(0, 1000), artifact.subarray(0, length - 1)];
  for (const at of [0.001, 0.5, 0.999]) {
    damaged.push(artifact.slice());
    damaged[damaged.length - 1][Math.floor(at * length)] ^= 4;
  }
  for (const bytes of damaged) {
    const error = await failure(() => load({ source: bytes }));
    equal([error?.name, error?.code], ["TSMError", "artifact"], String(error));
  }
  const module = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 9]);
  equal((await failure(() => load({ wasm: module })))?.code, "unsupported");
}

/** Progress goes up to the end; other sources; an abort. @param {Place} place */
async function loading({ load, artifact }) {
  /** @type {number[]} */
  const seen = [];
  for (const source of [undefined, artifact, new Blob([artifact.slice()])]) {
    seen.length = 0;
    const tsm = await load({
      ...(source && { source }),
      onProgress: ({ loaded, total }) => {
        if (total !== artifact.length) throw new Error(`${total} bytes`);
        seen.push(loaded);
      },
    });
    equal(tsm.metadata.quantization, "int8");
    tsm.close();
    equal([seen.at(-1), seen.every((loaded, i) => !i || loaded > seen[i - 1])], [artifact.length, true]);
    // Node's Blob and WebKit's answers from this machine come in one piece.
    if (seen.length < 2 && source === artifact) throw new Error("no progress between");
  }
  const unsized = await load({ source: new Response(new Blob([artifact.slice()]).stream()) });
  equal((await unsized.generate(PROMPT, { bytes: 5, seed: 1 })).bytes, 5);
  unsized.close();
  const controller = new AbortController();
  const error = await failure(() => load({ signal: controller.signal, onProgress: () => controller.abort() }));
  equal(error?.name, "AbortError");
  equal((await failure(() => load({ source: new Response("", { status: 404 }) })))?.code, "io");
  equal((await failure(() => load({ source: /** @type {any} */ (7) })))?.code, "argument");
  equal((await failure(() => load(/** @type {any} */ ({ workers: 2 }))))?.code, "argument");
}

/** @param {AsyncIterable<string>} generation */
async function collect(generation) {
  const all = [];
  for await (const piece of generation) all.push(piece);
  return all;
}

/** @param {() => unknown} call @returns {Promise<any>} what it throws */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
}

/** @param {unknown} found @param {unknown} wanted @param {string} [what] */
function equal(found, wanted, what = "found") {
  const [left, right] = [found, wanted].map((value) =>
    JSON.stringify(value instanceof Uint8Array ? crc32(value) : value, (_, part) =>
      typeof part === "bigint" ? String(part) : part,
    ),
  );
  if (left !== right) throw new Error(`${what} ${left}, wanted ${right}`);
}

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return (~crc >>> 0).toString(16).padStart(8, "0");
}

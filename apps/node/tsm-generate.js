#!/usr/bin/env node
/* Text from a TSM model: `tsm-generate --help`. Names and results are those of runtime/generate.py. */

import { fstatSync } from "node:fs";
import { chmod, readFile, realpath, rename, rm, stat, writeFile } from "node:fs/promises";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { TSM, TSMError } from "tsm-runtime";

const HELP = `usage: tsm-generate [options] [model]

Generate text from a TSM artifact, in memory that does not grow with the text.

    tsm-generate --prompt "JULIET:" --bytes 1000 --temperature 0.9
    echo -n "ROMEO:" | tsm-generate my-model.onnx --seed 1 --json

Only the generated text goes to standard output, as UTF-8, as it comes. The same model, prompt, settings
and --seed give the same text on every run, and in every other program of TSM. Without --seed each run
draws another one: --json tells it, and so does standard error when the text goes to a terminal. A terminal
is shown control characters as escapes; files and pipes get them as they are.

  model                   a .tflite or .onnx artifact in int8 or int4 (default: the one of the package)
  -h, --help              show this and exit
  --version               show the version and exit
  --prompt TEXT           text to continue (default: standard input if it is a pipe or a file with
                          something in it, else "ROMEO:\\n")
  --prompt-file FILE      file to continue; - is standard input
  -e, --escape            read \\n, \\r, \\t, \\\\, \\', \\" and \\xHH in --prompt and --stop as what they stand for
  --bytes N               bytes to generate (default: 500)
  --samples N             how many texts, of seeds S, S + 1, ... (default: 1)

sampling (a loaded state has its own settings, which hold where none are given):
  --temperature T         0 always takes the likeliest byte; 1 draws as the model predicts (default: 0.8)
  --top-k K               draw from the K likeliest; 0: all (default: 0)
  --typical-p P           draw from bytes of the most usual surprise, of this total probability (default: 1)
  --top-p P               draw from the fewest bytes of this total probability (default: 1)
  --min-p P               draw from bytes of at least P times the likeliest's probability (default: 0)
  --repetition-penalty R  divide the logits of recent bytes by R (default: 1)
  --presence-penalty A    lower the logits of recent bytes by A (default: 0)
  --frequency-penalty A   lower the logits of recent bytes by A for each time they came (default: 0)
  --penalty-window N      how many bytes are recent, prompt included (default: 64)
  --seed S                same seed, same text (default: drawn anew)
  --logit-bias BYTE=VALUE add to the logit of a byte, before all else; -inf: never; repeatable

where it ends, states, output:
  --stop TEXT             end before this text; repeatable
  --save-state FILE       keep there all that goes on from the end
  --load-state FILE       go on from what --save-state kept there, also in Python or C
  --json                  print one JSON object a text, at its end

Exit codes: 0; 2 after one line about bad input; 128 and the number of a signal (Ctrl-C: 130).
`;

/** @type {Record<string, { type: "string" | "boolean", short?: string, multiple: boolean }>} as the help has them */
const OPTIONS = {};
for (const [, short, name, value, rest] of HELP.matchAll(/^  (?:-(\w), )?--([\w-]+)( [A-Z]\S*)?(.*)$/gm))
  OPTIONS[name] = {
    type: value ? "string" : "boolean",
    ...(short && { short }),
    multiple: rest.endsWith("repeatable"),
  };
const SETTINGS = HELP.slice(HELP.indexOf("\nsampling"), HELP.indexOf("--seed S")).match(/(?<=--)[\w-]+/g) ?? [];

class BadInput extends Error {}
const before = new AbortController(); // ends what comes before the text
/** @type {import("tsm-runtime").Generation | undefined} */
let generation;
let signalled = 0;

/** @param {string[]} argv */
async function main(argv) {
  const { values, positionals } = parse(argv);
  if (values.help) return write(HELP);
  if (values.version) return write(`tsm-generate ${await version()}\n`);
  if (positionals.length > 1) throw new BadInput(`found ${positionals.length} models, wanted one`);
  const settings = readSettings(values);
  const stop = readStops(values);
  const bytes = whole("--bytes", values.bytes ?? "500");
  const samples = whole("--samples", values.samples ?? "1");
  const prompt = await readPrompt(values);
  const model = positionals[0] ?? fileURLToPath(import.meta.resolve("tsm-runtime/shakespeare-int8.tflite"));
  const tsm = await TSM.load(model, { signal: before.signal });
  let started = performance.now();
  const loaded = values["load-state"];
  const session =
    loaded === undefined
      ? await tsm.session(settings)
      : await named(
          loaded,
          readFile(loaded).then((state) => tsm.restore(state)),
        );
  await session.feed(prompt, { signal: before.signal });
  const first = BigInt(settings.seed ?? session.settings.seed);
  const terminal = process.stdout.isTTY;
  const drawn = settings.seed === undefined && loaded === undefined;
  if (terminal && drawn && samples === 1 && !values.json) process.stderr.write(`seed ${first}\n`);
  const place = values["save-state"];
  const keep = async () => place !== undefined && keepState(place, await session.save());
  if (place !== undefined && !(await isStream(place))) await keep(); // a place that cannot be written costs no text
  try {
    for (let i = 0; i < samples && !signalled; i++) {
      const text = samples > 1 ? await session.fork() : session;
      const seed = BigInt.asUintN(64, first + BigInt(i));
      generation = text.generate({ ...settings, seed, bytes, stop });
      if (values.json) {
        await write(report(await generation, prompt, performance.now() - started));
      } else {
        if (samples > 1) await write(`[${i + 1}/${samples}, seed ${seed}]\n`);
        for await (const piece of generation) await write(terminal ? printable(piece) : piece);
        if (samples > 1 || terminal) await write("\n"); // what follows begins a line of its own
      }
      if (text !== session) text.close();
      started = performance.now();
    }
  } finally {
    await keep(); // also where nobody reads on
  }
}

/** @param {string[]} args @returns {{ values: Record<string, any>, positionals: string[] }} */
function parse(args) {
  // As argparse, a number below zero is a value and no option.
  for (let i = args.length - 1; i > 0; i--)
    if (/^-\.?\d/.test(args[i]) && args[i - 1].startsWith("--"))
      args.splice(i - 1, 2, `${args[i - 1]}=${args[i]}`);
  try {
    const { values, positionals } = parseArgs({ args, options: OPTIONS, allowPositionals: true });
    if (values.prompt !== undefined && values["prompt-file"] !== undefined)
      throw new BadInput("argument --prompt-file: not allowed with --prompt");
    if (values["save-state"] !== undefined && values.samples !== undefined)
      throw new BadInput("argument --samples: not allowed with --save-state");
    return { values, positionals };
  } catch (error) {
    throw new BadInput(/** @type {Error} */ (error).message.split(/\. To specify|\n/)[0]);
  }
}

/** @param {Record<string, any>} values */
function readSettings(values) {
  /** @type {Record<string, any>} */
  const settings = {};
  for (const option of SETTINGS)
    if (values[option] !== undefined) settings[camelCase(option)] = finite(`--${option}`, values[option]);
  if (values.seed !== undefined) {
    if (!/^-?\d+$/.test(values.seed)) throw wanted("--seed", values.seed, "a whole number");
    settings.seed = BigInt.asUintN(64, BigInt(values.seed));
  }
  for (const given of values["logit-bias"] ?? []) {
    const [, byte, value] = /^(\d+|0x[0-9a-f]+)=(.+)$/i.exec(given) ?? [];
    if (!byte) throw wanted("--logit-bias", given, "BYTE=VALUE, as in 10=-2 or 0x0A=-inf");
    settings.logitBias ??= {};
    settings.logitBias[Number(byte)] = value === "-inf" ? -Infinity : finite("--logit-bias", value);
  }
  return /** @type {import("tsm-runtime").Settings} */ (settings);
}

/** @param {Record<string, any>} values @returns {string[]} */
function readStops({ stop = [], escape }) {
  return stop.map((/** @type {string} */ given) => {
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(typed(given, escape));
    } catch {
      throw wanted("--stop", given, "text in UTF-8");
    }
  });
}

/** @param {Record<string, any>} values */
async function readPrompt(values) {
  const file = values["prompt-file"];
  if (file !== undefined && file !== "-") return named(file, readFile(file));
  if (values.prompt !== undefined) return typed(values.prompt, values.escape);
  const all = file === "-" || isGiven() ? await named("standard input", readInput()) : Buffer.of();
  return all.length || file || values["load-state"] ? all : Buffer.from("ROMEO:\n");
}

/** Whether standard input is something to read, and not a terminal or nothing. */
function isGiven() {
  try {
    const input = fstatSync(0);
    return input.isFIFO() || input.isFile() || input.isSocket();
  } catch {
    return false; // closed
  }
}

async function readInput() {
  before.signal.addEventListener("abort", () => process.stdin.destroy()); // or it waits for the end of it
  const pieces = [];
  for await (const piece of process.stdin) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** Its very bytes. @param {string} given @param {boolean | undefined} escape */
function typed(given, escape) {
  const bytes = Buffer.from(given);
  if (!escape) return bytes;
  const stands = /** @type {Record<string, string>} */ ({ n: "\n", r: "\r", t: "\t" });
  const text = bytes
    .toString("latin1")
    .replace(/\\(?:x([0-9a-f]{2})|([nrt\\'"]))/gi, (_, hex, letter) =>
      hex ? String.fromCharCode(parseInt(hex, 16)) : (stands[letter] ?? letter),
    );
  return Buffer.from(text, "latin1");
}

/** @param {import("tsm-runtime").Result} result @param {Uint8Array} prompt @param {number} milliseconds */
function report({ seed, ...result }, prompt, milliseconds) {
  const all = {
    text: result.text,
    bytes: result.bytes,
    finish_reason: result.finishReason,
    prompt: new TextDecoder().decode(prompt),
    engine: "wasm",
    seconds: milliseconds / 1000, // reading the prompt and generating; not loading
    bytes_per_second: (1000 * result.bytes) / milliseconds,
    peak_rss_bytes: process.resourceUsage?.().maxRSS * 1024,
  };
  return JSON.stringify(all).replace(/}$/, `,"seed":${seed}}\n`); // a number of 64 bits is no number of JavaScript's
}

/** A device or a pipe, which takes bytes as they come and must not be replaced. @param {string} path */
async function isStream(path) {
  const found = await stat(path).catch(() => undefined);
  return found !== undefined && !found.isFile() && !found.isDirectory();
}

/** The state whole, or the file as it was: no crash and no full disk leaves half of one.
 * @param {string} path @param {Uint8Array} state */
async function keepState(path, state) {
  const kept = async () => {
    if (await isStream(path)) return writeFile(path, state);
    const goal = await realpath(path).catch(() => path); // of a link
    const unfinished = `${goal}.${process.pid}.partial`;
    try {
      await writeFile(unfinished, state);
      const old = await stat(goal).catch(() => undefined);
      if (old) await chmod(unfinished, old.mode);
      await rename(unfinished, goal);
    } catch (error) {
      await rm(unfinished, { force: true });
      throw error;
    }
  };
  await named(path, kept());
}

/** @template T @param {string} name @param {Promise<T>} work whose errors are those of a file */
async function named(name, work) {
  return work.catch((error) => {
    throw new BadInput(`${name}: ${error.message.replace(/^[A-Z]+: (.*?), .*/, "$1")}`);
  });
}

/** Control characters as escapes, so that no text can steer a terminal. @param {string} piece */
function printable(piece) {
  return piece.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, (control) =>
    control === "\r" ? "\\r" : `\\x${control.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );
}

/** @param {string} piece @returns {Promise<void>} */
function write(piece) {
  return new Promise((resolve, reject) => {
    process.stdout.write(piece, (error) => (error ? reject(error) : resolve()));
  });
}

/** @param {string} option @param {string} given */
function finite(option, given) {
  const value = given.trim() === "" ? NaN : Number(given);
  if (!Number.isFinite(value)) throw wanted(option, given, "a number");
  return value;
}

/** @param {string} option @param {string} given */
function whole(option, given) {
  const value = /^\d+$/.test(given) ? Number(given) : NaN;
  const least = option === "--samples" ? 1 : 0;
  if (!(value >= least && value <= Number.MAX_SAFE_INTEGER))
    throw wanted(option, given, `a whole number, ${least} or more`);
  return value;
}

/** @param {string} option @param {string} found @param {string} what */
function wanted(option, found, what) {
  return new BadInput(`argument ${option}: found ${JSON.stringify(found)}, wanted ${what}`);
}

async function version() {
  return JSON.parse(await readFile(new URL("package.json", import.meta.url), "utf8")).version;
}

/** @param {string} option */
function camelCase(option) {
  return option.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());
}

for (const name of /** @type {const} */ (["SIGINT", "SIGTERM", "SIGHUP"]))
  process.once(name, () => {
    signalled = constants.signals[name];
    before.abort();
    generation?.cancel();
  });
process.stdout.on("error", () => {}); // write() tells

try {
  await main(process.argv.slice(2));
} catch (error) {
  const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
  const ours = error instanceof TSMError || error instanceof BadInput;
  if (!ours && !signalled && code !== "EPIPE" && code !== "ENOSPC") throw error; // a reader who has had enough is no mistake
  if (!signalled && code !== "EPIPE") {
    const option = (/** @type {string} */ name) =>
      `argument --${name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}:`;
    const line = code === "argument" ? message.replace(/^\w+(?=:)/, option).replace("::", ":") : message;
    process.stderr.write(`tsm-generate: ${line}\n`);
    process.exitCode = 2;
  }
}
if (signalled) process.exitCode = 128 + signalled;

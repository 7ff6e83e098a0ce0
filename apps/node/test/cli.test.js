/* tsm-generate as users run it, beside runtime/generate.py; and what its README says. */

import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { blocks, bun, clone, deno, env, root, shell } from "../../web/test/place.js";

const cli = join(root, "apps/node/tsm-generate.js");
const folder = mkdtempSync(join(tmpdir(), "tsm-"));
after(() => rmSync(folder, { recursive: true }));

/** @param {string[]} args @param {string | Uint8Array} [input] */
function javascript(args, input) {
  return spawnSync(process.execPath, [cli, ...args], { input, cwd: folder });
}

/** @param {string[]} args @param {string | Uint8Array} [input] */
function python(args, input) {
  const generate = join(root, "runtime/generate.py");
  return execFileSync(process.env.PYTHON ?? "python3", [generate, "--engine", "native", ...args], {
    input,
    cwd: folder,
  });
}

for (const args of [
  ["--seed", "1"],
  [
    "--seed",
    "18446744073709551615",
    "--bytes",
    "50",
    "--prompt",
    "JULIET:\\n",
    "--temperature",
    "1.5",
    "--top-k",
    "9",
  ],
  [
    "--seed",
    "-3",
    "--bytes",
    "50",
    "-e",
    "--prompt",
    "J\\x55LIET:\\n\\t\\\\",
    "--typical-p",
    ".8",
    "--min-p",
    "0.01",
  ],
  ["--seed", "2", "--bytes", "300", "--stop", "\\n\\n", "--stop", "KING", "--escape", "--top-p", "0.95"],
  [
    "--seed",
    "3",
    "--bytes",
    "90",
    "--repetition-penalty",
    "1.2",
    "--presence-penalty",
    "-0.5",
    "--frequency-penalty",
    "1e-1",
    "--penalty-window",
    "99",
  ],
  ["--seed", "4", "--bytes", "60", "--logit-bias", "0x65=-inf", "--logit-bias", "32=-1.5", "--samples", "3"],
  ["--seed", "5", "--bytes", "60", "--temperature", "4", "--prompt", "Sœur 日本🎭"],
  ["--seed", "5", "--bytes", "0"],
])
  test(`the same bytes: ${args.join(" ")}`, () => {
    const { stdout, stderr, status } = javascript(args);
    assert.deepEqual([stdout.toString(), stderr.toString(), status], [python(args).toString(), "", 0]);
  });

test("a prompt from a pipe, a file or both as its bytes are", () => {
  const prompt = Buffer.from([82, 79, 255, 77, 69, 58]);
  const args = ["--seed", "1", "--bytes", "40"];
  const wanted = python([...args, "--prompt-file", "-"], prompt).toString();
  writeFileSync(join(folder, "prompt"), prompt);
  assert.equal(javascript(args, prompt).stdout.toString(), wanted);
  assert.equal(javascript([...args, "--prompt-file", "-"], prompt).stdout.toString(), wanted);
  assert.equal(javascript([...args, "--prompt-file", "prompt"]).stdout.toString(), wanted);
});

test("--json tells what Python's tells", () => {
  const args = ["--json", "--seed", "18446744073709551615", "--bytes", "40", "--samples", "2"];
  const rows = [javascript(args).stdout, python(args)].map((out) =>
    out
      .toString()
      .trim()
      .split("\n")
      .map((line) => {
        assert.match(line, /"seed": ?(18446744073709551615|0)\b/);
        const { engine, seconds, bytes_per_second, peak_rss_bytes, seed, ...same } = JSON.parse(line);
        for (const number of [seconds, bytes_per_second, peak_rss_bytes]) assert.ok(number > 0);
        return same;
      }),
  );
  assert.deepEqual(rows[0], rows[1]);
});

test("each goes on from the other's state, to the byte", () => {
  const begin = ["--seed", "9", "--bytes", "50", "--top-p", "0.9", "--save-state"];
  javascript([...begin, "ours"]);
  python([...begin, "theirs"]);
  const read = (/** @type {string} */ name) => readFileSync(join(folder, name));
  assert.deepEqual(read("ours"), read("theirs"));
  const rest = ["--bytes", "50", "--temperature", "0.5", "--load-state"];
  const ours = javascript([...rest, "theirs", "--save-state", "ours"]).stdout.toString();
  assert.equal(ours, python([...rest, "theirs", "--save-state", "theirs"]).toString());
  assert.deepEqual(read("ours"), read("theirs"));
});

test("a state goes into a pipe, through a link, and with the mode that it had", () => {
  const keep = `node ${cli} --bytes 5 --seed 1 </dev/null --save-state`;
  const bytes = `${keep} first >text; mkfifo pipe; cat pipe >piped & ${keep} pipe >text; wait; cmp first piped`;
  const linked = `touch kept; chmod 600 kept; ln -s kept link; ${keep} link >text; cmp first kept`;
  const there = "ls -l | grep -E 'pipe$|kept$' | cut -c 1-10";
  const refused = `mkdir d; ! ${keep} d >text 2>&1; ls *.partial 2>&1 | wc -l`;
  const shown = shell(`${bytes}; ${linked}; ${there}; ${refused}`, folder);
  assert.equal(shown, "-rw-------\nlrwxrwxrwx\nprw-r--r--\n1\n"); // that there is none
});

for (const [line, ...args] of [
  ["argument --top-p: wanted a number above 0, at most 1", "--top-p", "3"],
  ["Unknown option '--top-x'", "--top-x", "3"],
  ['argument --seed: found "x", wanted a whole number', "--seed", "x"],
  ["argument --top-k: found 1.5, wanted a whole number, 0 to 4294967295", "--top-k", "1.5"],
  ['argument --bytes: found "-1", wanted a whole number, 0 or more', "--bytes", "-1"],
  ['argument --samples: found "0", wanted a whole number, 1 or more', "--samples", "0"],
  ['argument --logit-bias: found "3", wanted BYTE=VALUE, as in 10=-2 or 0x0A=-inf', "--logit-bias", "3"],
  ["argument --logit-bias: found 300, wanted a whole number, 0 to 255", "--logit-bias", "300=1"],
  ["argument --stop: an empty one, wanted a character", "--stop="],
  ['argument --stop: found "\\\\xff", wanted text in UTF-8', "-e", "--stop", "\\xff"],
  ["argument --prompt-file: not allowed with --prompt", "--prompt", "a", "--prompt-file", "b"],
  ["argument --samples: not allowed with --save-state", "--samples", "2", "--save-state", "b"],
  ["found 2 models, wanted one", "a", "b"],
  ["nothing.tflite: no such file or directory", "nothing.tflite"],
  ["/: illegal operation on a directory", "/"],
  ["/nothing/state: no such file or directory", "--save-state", "/nothing/state"],
  [`${cli}: no TSM header found, wanted a .tflite or .onnx of TSM, whole`, cli],
  [`${cli}: no TSM state, wanted what tsm_save or --save-state wrote`, "--load-state", cli],
])
  test(`a mistake is one line: ${args.join(" ")}`, () => {
    const { stdout, stderr, status } = javascript(args);
    assert.deepEqual([stderr.toString(), stdout.toString(), status], [`tsm-generate: ${line}\n`, "", 2]);
  });

test("Ctrl-C is 130 and leaves a state that goes on", async () => {
  const child = spawn(process.execPath, [cli, "--seed", "1", "--bytes", "1000000", "--save-state", "stopped"], {
    cwd: folder,
  });
  let text = "";
  child.stdout.on("data", (data) => {
    text += data;
    if (text.length > 50 && !child.killed) child.kill("SIGINT");
  });
  child.stdin.end();
  const code = await new Promise((resolve) => child.once("close", resolve));
  assert.equal(code, 130);
  const rest = javascript(["--load-state", "stopped", "--bytes", "30"]).stdout;
  const whole = javascript(["--seed", "1", "--bytes", String(Buffer.byteLength(text) + 30)]).stdout;
  assert.equal(text + rest, whole.toString());
});

test("Ctrl-C ends it also while it waits for a prompt", async () => {
  const child = spawn(process.execPath, [cli, "--prompt-file", "-"], { cwd: folder });
  await new Promise((resolve) => child.stdin.write(Buffer.alloc(1 << 20), resolve)); // more than the system holds
  child.kill("SIGINT");
  const code = await new Promise((resolve) => child.once("close", resolve));
  assert.equal(code, 130); // its standard input is open still
});

test("a reader who has had enough is no mistake", () => {
  const out = shell(
    `node ${cli} --bytes 1000000 --seed 1 </dev/null | head -c 20; echo " \${PIPESTATUS[0]}"`,
    folder,
  );
  assert.match(out, /^.{20} 0\n$/s);
});

test("a full disk is", () => {
  const { status, stderr } = spawnSync("bash", ["-c", `node ${cli} --bytes 10 </dev/null >/dev/full`], { env });
  assert.deepEqual([status, stderr.toString().split("\n").length], [2, 2]);
});

test("a terminal is told the seed, and not steered", () => {
  const shown = shell(`script -qec "node ${cli} --bytes 300 --temperature 5" /dev/null`, folder);
  assert.match(shown, /^seed \d+\r\n/);
  assert.doesNotMatch(shown, /[\x00-\x08\x0b\x0c\x0e-\x1f]/);
});

test("--help tells of every option, --version of one", () => {
  const { stdout, status } = javascript(["--help"]);
  assert.equal(status, 0);
  const options = stdout.toString().match(/--[\w-]+/g);
  for (const option of ["--prompt", "--bytes", "--top-k", "--penalty-window", "--load-state", "--json"])
    assert.ok(options?.includes(option));
  assert.equal(javascript(["--version"]).stdout.toString(), "tsm-generate 0.1.0\n");
});

test("the README's commands, and its Bun and Deno", () => {
  const place = clone();
  const [install, commands, others] = blocks("apps/node/README.md", "sh");
  shell(install, place);
  const app = join(place, "my-app");
  const out = shell(commands, app);
  assert.ok(out.startsWith("usage:"));
  assert.equal(out.slice(-50), out.slice(-100, -50)); // what goes on from one state
  const wanted = javascript(["--seed", "1", "--bytes", "50"]).stdout.toString();
  for (const line of others.trim().split("\n")) {
    const [program, ...rest] = line.split(" ");
    assert.equal(shell(`${{ bun, deno }[program]} ${rest.join(" ")} </dev/null`, app), wanted);
  }
});

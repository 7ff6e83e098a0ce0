"""The engine as WebAssembly, in Node 20 or later: what a module holds, the same bytes as native.

make test-apps-wasm
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import ROOT, RUNTIME, TFLITE
from programs import assert_vectors, output, run, sampling_bytes, vector_lines

sys.path.insert(0, str(ROOT / "tests/fuzz"))
from tiny import tiny_artifact  # noqa: E402

PLAIN, RELAXED = ROOT / "apps/web/tsm.wasm", ROOT / "apps/web/tsm-relaxed.wasm"
VECTORS = ROOT / "tests/apps/vectors.mjs"
# Its V8 makes VNNI's instruction of the relaxed dot product, which that of Node 20 and 22 does not.
DENO = ROOT / "apps/node_modules/@deno/linux-x64-glibc/deno"
NODE_ARM64 = ROOT / "build/node-arm64/package/bin/node"
# By module and instructions: plain C, SIMD128, relaxed SIMD.
KINDS = [(PLAIN, 0), (PLAIN, 1), (RELAXED, 1), (RELAXED, 2)]
MOST_BYTES, MOST_BROTLI_BYTES = 64 * 1024, 24 * 1024
LOOK = """
const {readFileSync} = require('node:fs'), file = readFileSync(process.argv[1]);
const module = new WebAssembly.Module(file);
console.log(JSON.stringify({
  imports: WebAssembly.Module.imports(module),
  exports: WebAssembly.Module.exports(module).map(({name}) => name),
  bytes: file.length,
  brotli_bytes: require('node:zlib').brotliCompressSync(file).length,
}));
"""


def node(*command: object, **settings) -> bytes:
    """Node, before version 22 with what it holds back there."""
    flag = "--experimental-wasm-relaxed-simd"
    known = run("node", flag, "--version").returncode == 0
    return output("node", *([flag] if known else []), *command, **settings)


def reference(folder: Path) -> Path:
    """vectors.c, in plain C by this machine's compiler."""
    program = folder / "vectors"
    sources = [ROOT / "tests/apps/vectors.c", RUNTIME / "native/tsm.c"]
    flags = ["-O2", "-ffp-contract=off", "-Wno-psabi", "-I", RUNTIME / "native"]
    output("cc", *flags, "-o", program, *sources, "-lm", "-pthread")
    return program


def long_lines() -> bytes:
    """Prompts of every number of tokens that a product takes at once, and long texts."""
    text = (ROOT / "README.md").read_bytes()
    lines = []
    for prompt, count, settings in [
        *(
            (size, 3, {"temperature": 0})
            for size in (1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 127, 128, 129)
        ),
        (1024, 100, {"temperature": 1.5}),
        (7, 1500, {"temperature": 0}),
        (7, 500, {"seed": 7}),
    ]:
        sampling = sampling_bytes({"seed": 0, **settings}).hex()
        lines.append(f"{sampling} {count} {text[:prompt].hex()}")
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize("module", [PLAIN, RELAXED], ids=lambda path: path.stem)
def test_module_is_small_and_wants_nothing(module: Path) -> None:
    found = json.loads(node("-e", LOOK, module))
    assert found["imports"] == []
    assert {"memory", "malloc", "free", "tsm_open", "tsm_next"} <= set(found["exports"])
    assert found["bytes"] <= MOST_BYTES
    assert found["brotli_bytes"] <= MOST_BROTLI_BYTES


@pytest.mark.parametrize(("module", "simd"), KINDS)
def test_vectors(module: Path, simd: int) -> None:
    assert_vectors(node(VECTORS, module, TFLITE, simd, input=vector_lines()))


# Widths that leave rests of every length.
@pytest.mark.parametrize("shape", [(8, 16, 16), (8, 24, 48), (4, 16, 16), (4, 24, 16), (4, 40, 48)])
def test_same_bytes_as_native_for_other_models(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    model = tmp_path / "tiny.tflite"
    model.write_bytes(tiny_artifact(*shape))
    lines = long_lines()
    wanted = output(reference(tmp_path), model, 0, input=lines)
    for module, simd in KINDS:
        assert node(VECTORS, module, model, simd, input=lines) == wanted
    assert output(DENO, "run", "-A", VECTORS, RELAXED, model, 2, input=lines) == wanted


@pytest.mark.parametrize(("module", "simd"), KINDS[1:])
def test_same_bytes_as_native_for_long_texts(tmp_path: Path, module: Path, simd: int) -> None:
    wanted = output(reference(tmp_path), TFLITE, 3, input=long_lines())
    assert node(VECTORS, module, TFLITE, simd, input=long_lines()) == wanted


def test_same_bytes_on_arm64_in_an_emulator(tmp_path: Path) -> None:
    """The relaxed dot product is another instruction there, which takes signed bytes."""
    emulated = ["qemu-aarch64-static", "-cpu", "max", "-L", ROOT / ".arm/arm64", NODE_ARM64]
    lines = b"\n".join(long_lines().splitlines()[:13])  # prompts
    wanted = output(reference(tmp_path), TFLITE, 3, input=lines)
    assert output(*emulated, VECTORS, RELAXED, TFLITE, 2, input=lines) == wanted
    assert_vectors(output(*emulated, VECTORS, RELAXED, TFLITE, 2, input=vector_lines()))


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    model = tmp_path / "damaged.tflite"
    file = bytearray(TFLITE.read_bytes())
    file[5_000_000] ^= 1
    model.write_bytes(file)
    done = run("node", VECTORS, PLAIN, model, 1, input=vector_lines())
    assert done.returncode
    assert b"-6: CRC-32 differs" in done.stderr

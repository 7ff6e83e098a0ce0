"""The engines of the runtime on one artifact, interleaved: bytes/s of generating and of reading a
prompt, the peak memory of a process that generates, and of the C engine how much it reaches of the
speed at which the machine can read its weights.

    python benchmarks/runtime.py
    python benchmarks/runtime.py runs/mine-int4.tflite
    python benchmarks/runtime.py --instructions
    python benchmarks/runtime.py runs/mine-int8.tflite runs/other-int8.tflite   # the C engine alone
    python benchmarks/runtime.py --presets shakespeare memory       # so too, of weights at random

Generating goes through the runtime's own loop, sampling on, at temperature 0.8. The engines take
turns, and medians count. One thread each. The engine alone and reading take turns, too
(ceiling.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ceiling import of_ceiling
from results import append

from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import SHIPPED_MODEL, Engine, kinds, open_engine
from tsm.runtime.engines.native import BITS, SIMD, NativeEngine, computes
from tsm.runtime.sampling import Sampling
from tsm.runtime.stream import Model
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
PROMPT = b"ROMEO:\n"
API = """
import sys
from runtime import load
stream = load(sys.argv[1], sys.argv[2]).stream()
for _ in stream.generate(int(sys.argv[3])):
    pass
with open("/proc/self/status") as lines:
    print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""
READ_BYTES, TURN_BYTES, TURNS, LONG_BYTES = 1024, 200, 15, 10_000
INSTRUCTIONS = (
    ("plain C", "AVX2", "AVX-VNNI", "AVX-512 VNNI")
    if os.uname().machine == "x86_64"
    else ("plain C", "NEON", "NEON, dot product")
)
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="*", type=Path, default=[SHIPPED_MODEL])
    parser.add_argument(
        "--instructions", action="store_true", help="the C engine alone, by each kind that is here"
    )
    fit = [name for name, spec in PRESETS.items() if computes(spec.to_dict(), "int8")]
    parser.add_argument("--presets", nargs="+", choices=fit, default=[], metavar="NAME")
    arguments = parser.parse_args()
    if arguments.presets:
        if arguments.instructions or arguments.artifacts != [SHIPPED_MODEL]:
            parser.error("--presets stands alone")
        with tempfile.TemporaryDirectory() as folder:
            made = [_made(name, kind, Path(folder)) for kind in BITS for name in arguments.presets]
            _alone([NativeEngine(open_artifact(path)) for path in made])
        return 0
    artifacts = [open_artifact(path.resolve()) for path in arguments.artifacts]
    if arguments.instructions or len(artifacts) > 1:
        levels = range(4) if arguments.instructions else [SIMD]
        engines = [NativeEngine(artifact, level) for artifact in artifacts for level in levels]
        _alone([*{(engine.artifact.path, engine.simd): engine for engine in engines}.values()])
        return 0
    [artifact] = artifacts
    path = Path(artifact.path)
    opened = {kind: open_engine(artifact, kind) for kind in kinds(artifact)}
    generated: dict[str, list[float]] = {kind: [] for kind in opened}
    read: dict[str, list[float]] = {kind: [] for kind in opened}
    for turn in range(TURNS):
        for kind, engine in opened.items():
            generated[kind].append(TURN_BYTES / _seconds(engine, turn))
            started = time.perf_counter()
            engine.feed(b"x" * READ_BYTES)
            read[kind].append(READ_BYTES / (time.perf_counter() - started))
    for kind, engine in opened.items():
        found = {
            "artifact": path.name,
            "file_bytes": path.stat().st_size,
            "engine": kind,
            "generated_bytes_per_second": statistics.median(generated[kind]),
            "read_bytes_per_second": statistics.median(read[kind]),
            **_long(path, kind),
        }
        if isinstance(engine, NativeEngine):
            found.update(of_ceiling(engine))
        print(append(RESULTS, found))
    return 0


def _made(preset: str, kind: str, folder: Path) -> Path:
    """An artifact of this shape, whose units all have an effect."""
    from tsm.export import to_tflite
    from tsm.training import model
    from tsm.training.checkpoint import save_model

    spec, random = PRESETS[preset], np.random.default_rng(0)
    weights = model.initialise(spec, 0)
    for name, value in weights.items():
        if name.endswith(".out"):  # which begin at zero
            weights[name] = 0.02 * random.standard_normal(value.shape, np.float32)
    source, out = folder / f"{preset}.safetensors", folder / f"random-{preset}-{kind}.tflite"
    save_model(source, spec, weights)
    if to_tflite.main([str(source), "--quantize", kind, "--out", str(out)]):
        raise SystemExit(f"runtime: {preset} in {kind} is not exported")
    return out


def _alone(engines: list[NativeEngine]) -> None:
    """Of each a byte a call, and a prompt, in turns: medians."""
    alone: list[list[float]] = [[] for _ in engines]
    read: list[list[float]] = [[] for _ in engines]
    for _ in range(TURNS):
        for i, engine in enumerate(engines):
            started = time.perf_counter()
            for count in range(TURN_BYTES):
                engine.feed(bytes([32 + count % 90]))
            alone[i].append((time.perf_counter() - started) / TURN_BYTES)
            started = time.perf_counter()
            engine.feed(b"x" * READ_BYTES)
            read[i].append(READ_BYTES / (time.perf_counter() - started))
    for i, engine in enumerate(engines):
        found = {
            "artifact": Path(engine.artifact.path).name,
            "instructions": INSTRUCTIONS[engine.simd],
            "engine_microseconds_per_byte": 1e6 * statistics.median(alone[i]),
            "read_bytes_per_second": statistics.median(read[i]),
        }
        print(append(RESULTS, found))


def _seconds(engine: Engine, seed: int) -> float:
    started = time.perf_counter()
    stream = Model(engine).stream(Sampling(seed=seed))
    stream.feed(PROMPT)
    for _ in stream.generate_bytes(TURN_BYTES):
        pass
    return time.perf_counter() - started


def _long(path: Path, kind: str) -> dict[str, float]:
    """Of processes of their own that generate LONG_BYTES: by the command and by the Python API."""
    folder = ROOT / "runtime"
    options = ["--engine", kind, "--bytes", str(LONG_BYTES), "--json"]
    by_command = json.loads(_run(kind, folder / "generate.py", path, *options))["peak_rss_bytes"]
    by_api = int(_run(kind, "-c", API, path, kind, str(LONG_BYTES)))
    return {"peak_rss_bytes": by_command, "api_peak_rss_bytes": by_api}


def _run(kind: str, *arguments: str | Path) -> bytes:
    """Its output; in a Python without what a development environment adds to every start, and with
    its packages, whose names every import would keep, only for an engine that is one of them."""
    packages = [] if kind == "native" else [p for p in sys.path if p.endswith("site-packages")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *packages])}
    command = [sys.executable, "-S", *arguments]
    run = subprocess.run(command, capture_output=True, check=True, env=environment, cwd=ROOT)
    return run.stdout


if __name__ == "__main__":
    sys.exit(main())

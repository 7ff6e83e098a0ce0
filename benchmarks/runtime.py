"""The engines of the runtime on one artifact, interleaved: bytes/s of generating and of reading a
prompt, and the peak memory of a process that generates.

    python benchmarks/runtime.py
    python benchmarks/runtime.py runs/mine-int4.tflite

Generating goes through the runtime's own loop, sampling on, at temperature 0.8. The engines take
turns, and medians count. One thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import append

from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import SHIPPED_MODEL, Engine, kinds, open_engine
from tsm.runtime.sampling import Sampling
from tsm.runtime.stream import Model

ROOT = Path(__file__).parent.parent
PROMPT = b"ROMEO:\n"
READ_BYTES, TURN_BYTES, TURNS, LONG_BYTES = 1024, 200, 15, 10_000
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", nargs="?", type=Path, default=SHIPPED_MODEL)
    path = parser.parse_args().artifact
    artifact = open_artifact(path)
    engines = {kind: open_engine(artifact, kind) for kind in kinds(artifact)}
    made: dict[str, list[float]] = {kind: [] for kind in engines}
    read: dict[str, list[float]] = {kind: [] for kind in engines}
    for turn in range(TURNS):
        for kind, engine in engines.items():
            made[kind].append(TURN_BYTES / _seconds(engine, turn))
            started = time.perf_counter()
            engine.feed(b"x" * READ_BYTES)
            read[kind].append(READ_BYTES / (time.perf_counter() - started))
    for kind in engines:
        found = {
            "artifact": path.name,
            "file_bytes": path.stat().st_size,
            "engine": kind,
            "generated_bytes_per_second": statistics.median(made[kind]),
            "read_bytes_per_second": statistics.median(read[kind]),
            **_long(path, kind),
        }
        print(append(RESULTS, found))
    return 0


def _seconds(engine: Engine, seed: int) -> float:
    started = time.perf_counter()
    stream = Model(engine).stream(Sampling(seed=seed))
    stream.feed(PROMPT)
    for _ in stream.generate_bytes(TURN_BYTES):
        pass
    return time.perf_counter() - started


def _long(path: Path, kind: str) -> dict[str, float]:
    """Of a process of its own that generates LONG_BYTES, as a user starts it."""
    script = ROOT / "runtime" / "generate.py"
    options = ["--engine", kind, "--bytes", str(LONG_BYTES), "--json"]
    run = subprocess.run([sys.executable, script, path, *options], capture_output=True, check=True)
    return {"peak_rss_bytes": json.loads(run.stdout)["peak_rss_bytes"]}


if __name__ == "__main__":
    sys.exit(main())

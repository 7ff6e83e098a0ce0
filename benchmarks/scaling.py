"""Weak scaling of training: tokens/s of one process on one core, and of two on two cores, which
together make updates twice as large; and of two that train apart, the most that the machine gives.

    python benchmarks/scaling.py

Each process is pinned to a core of its own. The settings take turns, `--rounds` times; of each run
the median step counts. The machine has to be quiet: two processes wait for the slower one.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import append, read

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_suffix(".jsonl")
SHAPE = ["--preset", "small", "--window", "256"]
ROWS = 8  # of a process
STEPS, SKIPPED = 30, 5
ONE = "one"
SETTINGS = {ONE: (1, True), "two together": (2, True), "two apart": (2, False)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    rounds = parser.parse_args().rounds
    for _ in range(rounds):
        for name, (processes, together) in SETTINGS.items():
            speed = sum(_measure(processes, together))
            found = {"setting": name, "tokens_per_second": speed}
            print(append(RESULTS, found), file=sys.stderr)
    print(table())
    return 0


def _measure(count: int, together: bool) -> list[float]:
    """Tokens/s of each training: of one that the processes share, or of one each."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        raise SystemExit(f"scaling: found {len(cores)} cores, wanted {count}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        runs = [Path(folder) / str(0 if together else index) for index in range(count)]
        for index, (core, out) in enumerate(zip(cores, runs, strict=True)):
            command = ["taskset", "-c", str(core), sys.executable, str(ROOT / "training/train.py")]
            command += ["--engine", "jax", "--data", "shakespeare", "--out", str(out), *SHAPE]
            rows = ROWS * count if together else ROWS
            command += ["--steps", str(STEPS), "--batch", str(rows), "--threads", "1"]
            command += ["--eval-windows", "4", "--checkpoint-every", str(STEPS)]
            if together and count > 1:
                command += ["--coordinator", address, "--processes", str(count)]
                command += ["--process-id", str(index)]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("scaling: a training failed; run its command by itself")
        return [_speed(out) for out in sorted(set(runs))]


def _speed(out: Path) -> float:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    return statistics.median(speeds[SKIPPED:])


def table() -> str:
    """Rows of Markdown: the median of each setting."""
    rows = ["| setting | tokens/s | of one |", "| --- | --- | --- |"]
    medians: dict[str, float] = {}
    for name in SETTINGS:
        speeds = [one["tokens_per_second"] for one in read(RESULTS) if one["setting"] == name]
        medians[name] = statistics.median(speeds)
        rows.append(f"| {name} | {medians[name]:,.0f} | {medians[name] / medians[ONE]:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())

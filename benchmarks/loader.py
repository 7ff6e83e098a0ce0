"""What it takes to load a corpus larger than memory, and whether a resumed run sees the same.

    python benchmarks/loader.py --gigabytes 20 --files 200000     # room in --folder

Writes files of random lines, no two alike but for a copy and a near copy in every hundred, and
forgets what the system has cached of them. Then each in a process of its own: the first start,
from nothing to the first batch; a resumed one; and one of two processes, which reads its half.
All is deleted at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from results import append, read

RESULTS = Path(__file__).with_suffix(".jsonl")
LINE, LINES = 50, 100_000  # bytes, and how many there are to choose from
FOLDER_FILES = 1000
COPY, NEAR_COPY = 50, 60  # of a hundred files
WINDOW, BATCH, SEED = 256, 64, 7
STEPS, RESUMED = 200, 137


def main() -> int:
    arguments = _parse()
    if arguments.data:
        print(json.dumps(_load(arguments)))
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        data, out = Path(folder, "data"), Path(folder, "run")
        began = time.monotonic()
        files = _write(data, arguments.files, round(arguments.gigabytes * 1e9))
        print(f"written in {time.monotonic() - began:.0f} s", file=sys.stderr)
        _forget(files)
        first = _measured("first start", data, out, 0)
        resumed = _measured(f"resumed at step {RESUMED}", data, out, RESUMED)
        half = _measured("process 2 of 2", data, out, RESUMED, "--half")
    same = resumed["examples"] == first["examples"][RESUMED:]
    same_half = half["second_half"] == first["second_half"][RESUMED:]
    about = {"gigabytes": arguments.gigabytes, "files": arguments.files, "same": same and same_half}
    for found in (first, resumed, half):
        kept = {name: value for name, value in found.items() if not isinstance(value, list)}
        append(RESULTS, kept | about)
    print(table(read(RESULTS)))
    return 0 if same and same_half else 1


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| corpus | start | seconds | CPU s | peak RSS, MB | examples/s | the same |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for one in results:
        corpus = f"{one['gigabytes']:g} GB, {one['files']:,} files"
        figures = (
            f"{one['seconds']:.1f} | {one['cpu_seconds']:.1f} | {one['peak_rss_bytes'] / 1e6:,.0f}"
        )
        rate, same = one["examples_per_second"], "yes" if one["same"] else "no"
        lines.append(f"| {corpus} | {one['start']} | {figures} | {rate:,.0f} | {same} |")
    return "\n".join(lines)


def _write(data: Path, count: int, size: int) -> list[Path]:
    random = np.random.default_rng(SEED)
    lines = random.integers(ord("a"), ord("z") + 1, (LINES, LINE), np.uint8)
    lines[:, 6::7], lines[:, -1] = ord(" "), ord("\n")
    files, text = [], lines[:1]
    for number in range(count):
        folder = data / f"{number // FOLDER_FILES:03}"
        folder.mkdir(parents=True, exist_ok=True)
        if number % 100 == NEAR_COPY:
            text[0] = lines[number % LINES]
        elif number % 100 not in (COPY, NEAR_COPY):
            length = size / count / LINE * random.uniform(0.5, 1.5)
            text = lines[random.integers(0, LINES, max(1, round(length)))]
        files.append(folder / f"{number}.txt")
        files[-1].write_bytes(text.tobytes())
    os.sync()
    return files


def _forget(files: list[Path]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def _measured(start: str, data: Path, out: Path, step: int, *more: str) -> dict[str, Any]:
    inner = ["--data", str(data), "--out", str(out), "--step", str(step), *more]
    command = [sys.executable, __file__, *inner, "--began", str(time.time())]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = {"start": start, **json.loads(run.stdout)}
    print(f"{start}: {found['seconds']:.1f} s, {found['summary']}", file=sys.stderr)
    return found


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    from tsm.training.data import batch, open_corpus

    part = slice(BATCH // 2, None) if arguments.half else slice(None)
    corpus = open_corpus(arguments.data, WINDOW, folder=Path(arguments.out))
    rows = [batch(corpus.train, SEED, arguments.step, BATCH, WINDOW, part)]
    seconds, cpu = time.time() - arguments.began, time.process_time()
    began = time.monotonic()
    for step in range(arguments.step + 1, STEPS):
        rows.append(batch(corpus.train, SEED, step, BATCH, WINDOW, part))
    rate = sum(map(len, rows[1:])) / (time.monotonic() - began)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "examples_per_second": rate,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "summary": corpus.summary,
        "examples": [hashlib.sha256(one).hexdigest() for one in rows],
        "second_half": [hashlib.sha256(one[-BATCH // 2 :]).hexdigest() for one in rows],
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=20, help="default: %(default)s")
    parser.add_argument("--files", type=int, default=200_000, help="default: %(default)s")
    parser.add_argument(
        "--folder", help="to write to (default: the system's, for what is temporary)"
    )
    for name in ("--data", "--out"):
        parser.add_argument(name, help="inner call")
    parser.add_argument("--began", type=float, help="inner call")
    parser.add_argument("--step", type=int, help="inner call")
    parser.add_argument("--half", action="store_true", help="inner call")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Odd lines of a log: tsm-score --lines against drain3, by the area under the ROC, and its memory.

    pip install drain3
    python benchmarks/logs.py roc                        # benchmarks/service_log.py's log
    python benchmarks/logs.py roc --log /var/log/dpkg.log
    python benchmarks/logs.py follow --megabytes 100

roc: both learn three days of a log without faults, and score the fourth with them. A small model is
trained (one thread, minutes), exported, and asked through the command. drain3 scores a line by how
rare its template is, or also by how rare the values of its parameters are there; of all its
settings here the best counts. A real log is split: the first 70% is learned, the rest gets faults.
The area is the chance that a faulty line scores higher than a normal one.

follow: a log that grows, and is renamed ten times, is followed; the peak of the memory of the
process at each tenth.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import service_log

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "build" / "logs"
TRAIN_DAYS, DAY_LINES, FAULTS = 3, 12_000, 0.1
SEED = 1
TRAINING = {
    "preset": "tiny",
    "window": 512,
    "batch": 8,
    "steps": 1500,
    "patience": 0,
    "threads": 1,
}
REAL_KINDS = ("message", "word", "garbled", "missing", "order", "repeated")
# What users of drain3 mask before it learns, from its own example configuration; with the time.
MASKS = (
    (r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d([.,]\d+)?", "TIME"),
    (r"((?<=[^A-Za-z0-9])|^)(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})((?=[^A-Za-z0-9])|$)", "IP"),
    (r"((?<=[^A-Za-z0-9])|^)([0-9a-f]{4,})((?=[^A-Za-z0-9])|$)", "HEX"),
    (r"((?<=[^A-Za-z0-9])|^)([\-\+]?\d+)((?=[^A-Za-z0-9])|$)", "NUM"),
)
# And what one would write who knows this service: numbers of its own range and places alone.
OWN_MASKS = (
    MASKS[0],
    (r"\b10\.20\.\d+\.\d+\b", "IP"),
    (r"(?<=req )[0-9a-f]{4}\b", "HEX"),
    (r"(?<=session )[0-9a-f]{6}\b", "HEX"),
    (r"(?<![\w.])\d+(\.\d+)?(?![\w.])", "NUM"),
)
UNREAD_BYTES = 1_000_000  # of a followed log, when it is renamed
SIMILARITIES = (0.4, 0.6)  # the first is drain3's default


def area(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Under the ROC: the part of the pairs in which the positive one is greater, equals half."""
    ranked = sorted([(score, 0) for score in negative] + [(score, 1) for score in positive])
    below = equal_negative = equal_positive = 0
    pairs, last = 0.0, -math.inf
    for score, is_positive in [*ranked, (math.inf, 0)]:
        if score != last:
            pairs += equal_positive * (below + equal_negative / 2)
            below += equal_negative
            equal_negative = equal_positive = 0
            last = score
        if is_positive:
            equal_positive += 1
        else:
            equal_negative += 1
    return pairs / (len(positive) * len(negative))


def with_faults(lines: list[bytes], part: float, seed: int) -> Iterator[tuple[bytes, str]]:
    """A real log with faults in this part of the lines, of REAL_KINDS in turn; each line, and the
    kind of its fault or nothing."""
    draw, faults, at = random.Random(seed), 0, 0
    words = sorted({word for line in lines for word in line.split()[2:]})
    while at < len(lines) - 2:
        line, at = lines[at], at + 1
        if draw.random() >= part:
            yield line, ""
            continue
        kind = REAL_KINDS[faults % len(REAL_KINDS)]
        faults += 1
        if kind == "message":
            text = service_log.filled(draw.choice(service_log.UNSEEN), draw)
            yield line, ""
            yield b" ".join([*line.split()[:2], text.encode()]), kind
        elif kind == "word":
            parts = line.split(b" ")
            changed = draw.randrange(2, len(parts)) if len(parts) > 2 else 0
            parts[changed] = draw.choice([word for word in words if word != parts[changed]])
            yield b" ".join(parts), kind
        elif kind == "garbled":
            yield service_log.garbled(line, draw), kind
        elif kind == "missing":
            yield lines[at], kind
            at += 1
        elif kind == "order":
            yield lines[at], kind
            yield line, kind
            at += 1
        else:
            yield line, ""
            yield line, kind


def by_model(train: list[bytes], test: list[bytes], folder: Path) -> dict[str, list[float]]:
    """Scores of each line of `test` by a model that learns `train`: the excess a byte, which
    tsm-score judges by, and what else could be taken."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.log").write_bytes(b"".join(line + b"\n" for line in train))
    (folder / "test.log").write_bytes(b"".join(line + b"\n" for line in test))
    options = [part for name, value in TRAINING.items() for part in (f"--{name}", str(value))]
    run("training/train.py", "--data", folder / "train.log", "--out", folder / "run", *options)
    model = folder / "model.tflite"
    run("export/to_tflite.py", folder / "run/model.safetensors", "--out", model)
    command = [sys.executable, str(ROOT / "runtime/score.py"), "--lines", "--all", "--json"]
    command += ["--model", str(model), str(folder / "test.log")]
    started = time.monotonic()
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    seconds = time.monotonic() - started
    size = (folder / "test.log").stat().st_size
    print(f"tsm-score: {size / seconds:,.0f} bytes/s", file=sys.stderr)
    rows = list(map(json.loads, printed.splitlines()))
    return {
        "tsm, excess a byte": [row["excess_nats_per_byte"] for row in rows],
        "tsm, excess": [row["excess_nats_per_byte"] * row["bytes"] for row in rows],
        "tsm, nats": [row["nats"] for row in rows],
        "tsm, nats a byte": [row["nats"] / row["bytes"] for row in rows],
    }


def run(script: str, *arguments: object) -> None:
    """A command of the project; what it prints goes to standard error."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)


def by_drain(train: list[bytes], test: list[bytes]) -> dict[str, list[float]]:
    """Scores of each line of `test` by drain3, which learns `train`, in each of its settings."""
    logging.getLogger("drain3").setLevel(logging.ERROR)
    before, after = (
        [line.decode("utf-8", "backslashreplace") for line in t] for t in (train, test)
    )
    scores = {}
    for masks_name, masks in (("no masks", ()), ("masks", MASKS), ("own masks", OWN_MASKS)):
        for similarity in SIMILARITIES:
            plain, full = drained(before, after, masks, similarity)
            name = f"drain3, {masks_name}, {similarity}"
            scores |= {f"{name}, template": plain, f"{name}, parameters too": full}
    return scores


def drained(
    before: list[str], after: list[str], masks: Sequence[tuple[str, str]], similarity: float
) -> tuple[list[float], list[float]]:
    """-log of how frequent each line's template is, and the same plus that of its parameters."""
    from drain3 import TemplateMiner
    from drain3.masking import MaskingInstruction
    from drain3.template_miner_config import TemplateMinerConfig

    config = TemplateMinerConfig()
    config.drain_sim_th = similarity
    config.masking_instructions = [MaskingInstruction(*mask) for mask in masks]
    miner = TemplateMiner(config=config)
    for line in before:
        miner.add_log_message(line)

    def looked_at(line: str) -> tuple[int, list[tuple[int, int, str]]] | None:
        """Its template and the values in it. None: no template is like this."""
        found = miner.match(line)
        if not found:
            return None
        values = miner.extract_parameters(found.get_template(), line, exact_matching=True) or []
        name = found.cluster_id
        return name, [(name, place, each.value) for place, each in enumerate(values)]

    templates: Counter[int] = Counter()
    values: Counter[tuple[int, int, str]] = Counter()
    for found in map(looked_at, before):
        if found:
            templates[found[0]] += 1
            values.update(found[1])
    distinct = Counter((name, place) for name, place, _ in values)
    plain, full = [], []
    for found in map(looked_at, after):
        if not found:  # more than any template, and than any of its parameters
            plain.append(math.log(len(before) + 1) + 1)
            full.append(1000.0)
            continue
        name, places = found
        rarity = -math.log((templates[name] + 0.5) / (len(before) + 1))
        plain.append(rarity)
        for name, place, value in places:  # by Laplace's rule, one value more than were seen
            kinds = distinct[name, place] + 1
            rarity -= math.log((values[name, place, value] + 1) / (templates[name] + kinds))
        full.append(rarity)
    return plain, full


def roc(arguments: argparse.Namespace) -> None:
    if arguments.log:
        lines = Path(arguments.log).read_bytes().splitlines()
        train, rest = lines[: len(lines) * 7 // 10], lines[len(lines) * 7 // 10 :]
        labelled = list(with_faults(rest, FAULTS, SEED))
        rare = [False] * len(labelled)
        kinds = REAL_KINDS
    else:
        days = (service_log.lines(SEED, day=day) for day in range(TRAIN_DAYS))
        train = [line for day in days for line, _ in islice(day, DAY_LINES)]
        steps = list(islice(service_log.lines(SEED, FAULTS, TRAIN_DAYS), DAY_LINES))
        labelled = [(line, step.fault) for line, step in steps]
        rare = [step.rare for _, step in steps]
        kinds = tuple(service_log.KINDS)
    test, faults = [line for line, _ in labelled], [fault for _, fault in labelled]
    name = Path(arguments.log).stem if arguments.log else "service"
    scores = by_model(train, test, RUNS / name) | by_drain(train, test)
    for system, values in scores.items():
        normal = [v for v, fault in zip(values, faults, strict=True) if not fault]
        row: dict[str, object] = {"log": name, "system": system}
        row["all"] = area([v for v, fault in zip(values, faults, strict=True) if fault], normal)
        for kind in kinds:
            of_kind = [v for v, fault in zip(values, faults, strict=True) if fault == kind]
            row[kind] = area(of_kind, normal)
        if any(rare):
            rare_ones = [v for v, is_rare in zip(values, rare, strict=True) if is_rare]
            row["rare"] = area(rare_ones, normal)  # no faults: the lower the better
        shown(row, arguments.json)


def shown(row: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(row), flush=True)
        return
    values = (
        f"{key} {value:.3f}" if type(value) is float else str(value) for key, value in row.items()
    )
    print("  ".join(values), flush=True)


def follow(arguments: argparse.Namespace) -> None:
    folder = RUNS / "follow"
    folder.mkdir(parents=True, exist_ok=True)
    path, wanted = folder / "service.log", int(arguments.megabytes * 1e6)
    path.write_bytes(b"")
    command = [sys.executable, str(ROOT / "runtime/score.py"), "--lines", "--follow", "--all"]
    command += ["--json", "--model", arguments.model, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    started, done, tenths = time.monotonic(), 0, 0
    threading.Thread(target=write, args=(path, wanted, lambda: done), daemon=True).start()
    try:
        for record in process.stdout:
            line = json.loads(record)
            done = line["offset"] + line["bytes"]
            if done * 10 >= wanted * (tenths + 1):
                tenths += 1
                row: dict[str, object] = {"read_mb": done / 1e6, "lines": line["line"]}
                row["seconds"] = time.monotonic() - started
                shown(row | memory(process.pid), arguments.json)
            if done >= wanted:
                break
    finally:
        process.terminate()
        process.wait()


def write(path: Path, wanted: int, read: Callable[[], int]) -> None:
    """Writes the log, `wanted` bytes, and gives it another name at each tenth, when all but a part
    has been read: a reader knows the last name alone."""
    written, file = 0, path.open("ab")
    for line, _ in service_log.lines(SEED, FAULTS, TRAIN_DAYS):
        written += file.write(line + b"\n")
        if written >= wanted:
            break
        if file.tell() * 10 >= wanted:
            file.flush()
            while written - read() > min(UNREAD_BYTES, wanted // 20):
                time.sleep(0.1)
            path.rename(path.with_suffix(".log.1"))
            file.close()
            file = path.open("ab")
    file.close()


def memory(process: int) -> dict[str, object]:
    """Of a process, resident now and at its peak, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    values = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.M))
    return {"rss_mb": int(values["VmRSS"]) / 1024, "peak_mb": int(values["VmHWM"]) / 1024}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("roc", "follow"))
    parser.add_argument("--log", help="roc: a real log in place of the made one")
    parser.add_argument("--model", default=str(RUNS / "service/model.tflite"), help="follow: whose")
    parser.add_argument("--megabytes", type=float, default=100, help="follow: of the log")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row")
    arguments = parser.parse_args()
    (roc if arguments.what == "roc" else follow)(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Two commits in turns: what a change costs in speed.

    python benchmarks/revision.py HEAD~1 --repeats 5

Each runs from a fresh worktree below build/revision, for how a model's file lies in memory alone
moves the time of a byte by a sixth: the first byte, generated and prompt bytes a second of the C
engine, by bench.py, and tokens a second of training, by train.py. Prints medians, and the ratio of
the second commit to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build/revision"
TRAINING = [
    *("--preset", "shakespeare", "--steps", "8", "--batch", "4", "--window", "256"),
    *("--eval-windows", "1", "--eval-every", "100"),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("before", help="a commit to compare with")
    parser.add_argument("now", nargs="?", default="HEAD", help="the other (default: HEAD)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each tree (default: 5)")
    arguments = parser.parse_args()
    trees = {"before": checkout(arguments.before), "now": checkout(arguments.now)}
    found = defaultdict(lambda: defaultdict(list))
    for turn in range(arguments.repeats):
        for name, tree in trees.items():
            print(
                f"\r\x1b[Kturn {turn + 1} of {arguments.repeats}, {name}", end="", file=sys.stderr
            )
            for figure, value in measure(tree).items():
                found[figure][name].append(value)
    print(file=sys.stderr)
    print(f"{'':<28}{'before':>12}{'now':>12}{'ratio':>8}")
    for figure, values in found.items():
        before, now = (statistics.median(values[name]) for name in trees)
        print(f"{figure:<28}{before:>12,.0f}{now:>12,.0f}{now / before:>8.3f}")


def checkout(revision: str) -> Path:
    """A worktree of the commit, its C engine compiled."""
    commit = subprocess.check_output(["git", "rev-parse", revision], cwd=ROOT, text=True).strip()
    tree = BUILD / commit
    if not tree.exists():
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", tree, commit], cwd=ROOT, check=True
        )
    subprocess.run(["make", "-s", "-C", tree, "native"], check=True)
    return tree


def measure(tree: Path) -> dict[str, float]:
    command = [
        "runtime/bench.py",
        "--engine",
        "native",
        "--longest",
        "100",
        "--repeats",
        "3",
        "--bytes",
        "1000",
    ]
    figures = json.loads(run(tree, *command, "--json"))
    [row], [process] = figures["speed"], figures["processes"]
    with tempfile.TemporaryDirectory() as folder:
        run(tree, "training/train.py", *TRAINING, "--out", folder)
        events = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        speeds = [event["tokens_per_second"] for event in events if event["kind"] == "train"]
    return {
        "first byte, microseconds": process["first_byte_seconds"] * 1e6,
        "generated, bytes/s": row["decode_bytes_per_second"],
        "prompt, bytes/s": row["prefill_bytes_per_second"],
        "training, tokens/s": statistics.median(speeds[2:]),
    }


def run(tree: Path, script: str, *arguments: str) -> str:
    """A script of that tree, which imports from there."""
    names = tree / "build/names/tsm"
    names.mkdir(parents=True, exist_ok=True)
    for package in ("training", "export", "runtime"):
        if not (names / package).exists():
            (names / package).symlink_to(tree / package)
    environment = {**os.environ, "PYTHONPATH": str(names.parent)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a start would compile its modules anew
    command = [sys.executable, str(tree / script), *arguments]
    return subprocess.run(
        command,
        env=environment,
        cwd=tree,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    ).stdout


if __name__ == "__main__":
    main()

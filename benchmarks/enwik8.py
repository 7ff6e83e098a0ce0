"""enwik8 in bits per byte of its test part: the TSM and baselines of equal size, trained on equally
many bytes in equally large steps.

    python benchmarks/enwik8.py                    # goes on where it was stopped; hours on a CPU
    python benchmarks/enwik8.py --steps 20000 --batch 16 --engine jax     # on a GPU
    python benchmarks/enwik8.py --table

Windows of 1,024 bytes, in training and, fresh, in evaluation; one rate for all, that of train.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from results import append, read

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "build" / "enwik8"
RESULTS = Path(__file__).with_suffix(".jsonl")
PRESETS = ("enwik8", "mingru", "attention")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, metavar="NAME")
    parser.add_argument("--steps", type=int, default=800, help="(default: 800)")
    parser.add_argument("--batch", type=int, default=4, help="windows a step (default: 4)")
    parser.add_argument("--engine", choices=("torch", "jax"), default="torch")
    parser.add_argument("--limit", type=int, default=200_000, help="bytes of the test part")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        for preset in arguments.presets:
            print(append(RESULTS, _measure(preset, arguments)), file=sys.stderr)
    print(table())
    return 0


def _measure(preset: str, arguments: argparse.Namespace) -> dict[str, object]:
    out = RUNS / f"{preset}-{arguments.steps}-{arguments.batch}"
    how = ["--steps", str(arguments.steps), "--batch", str(arguments.batch)]
    how += ["--engine", arguments.engine, "--patience", "0", "--compiled", "--threads", "1"]
    train = ["training/train.py", "--data", "enwik8", "--preset", preset, "--out", str(out), *how]
    subprocess.run([sys.executable, *train], cwd=ROOT, check=True)
    evaluate = ["training/evaluate.py", str(out / "model.safetensors"), "--data", "enwik8"]
    evaluate += ["--window", "1024", "--limit", str(arguments.limit), "--json"]
    done = subprocess.run([sys.executable, *evaluate], cwd=ROOT, check=True, capture_output=True)
    record = json.loads((out / "model.json").read_bytes())
    config = record["config"]
    return {
        "preset": preset,
        "parameters": record["parameters"],
        "bytes_learned_from": config["steps"] * config["batch"] * config["window"],
        "hours": record["hours"],
        **json.loads(done.stdout),
    }


def table() -> str:
    lines = ["| model | bytes learned from | bits/byte, fresh | streaming |", "| --- " * 4 + "|"]
    for one in read(RESULTS):
        losses = f"{one['fresh_bits_per_byte']:.3f} | {one['streaming_bits_per_byte']:.3f}"
        lines.append(f"| {one['preset']} | {one['bytes_learned_from']:,} | {losses} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Training on a small text beside one busy process: the defaults against a sweep around them.

    python benchmarks/small_text.py

train.py with its defaults on a text (the first 58,000 bytes of Tiny Shakespeare, or of --data),
then with other lengths and learning rates, while another process spins: minutes, tokens a second
(median), the best evaluation and its step. The last line tells how far the defaults are from the
best of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT_BYTES = 58_000
# Of the default's number of steps, and of its learning rates.
SWEEP = ((1.0, 1.0), (0.5, 1.0), (0.75, 1.0), (1.5, 1.0), (1.0, 0.5), (1.0, 2.0))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="shakespeare", help="file whose start is the text")
    parser.add_argument(
        "--runs", type=int, default=len(SWEEP), help="of the sweep, the defaults first"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")
    arguments = parser.parse_args()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder, "text")
            text.write_bytes(source(arguments.data).read_bytes()[:TEXT_BYTES])
            rows = []
            for scale, rate_scale in SWEEP[: arguments.runs]:
                given = options(rows[0]["config"], scale, rate_scale) if rows else []
                rows.append(train(text, Path(folder, str(len(rows))), given))
                print(json.dumps(rows[-1]) if arguments.json else shown(rows[-1]), flush=True)
    finally:
        busy.kill()
    gap = rows[0]["nats_per_byte"] - min(row["nats_per_byte"] for row in rows)
    print(f"the defaults are {gap:.4f} nats/byte above the best of {len(rows)}", file=sys.stderr)
    return 0


def source(data: str) -> Path:
    from tsm.training.data import open_corpus

    return open_corpus(data, 256).path


def options(config: dict, scale: float, rate_scale: float) -> list[str]:
    rates = {
        name: config[name] * rate_scale for name in ("muon_learning_rate", "adam_learning_rate")
    }
    values = {"steps": round(config["steps"] * scale), **rates}
    return [
        part
        for name, value in values.items()
        for part in ("--" + name.replace("_", "-"), str(value))
    ]


def train(text: Path, out: Path, given: list[str]) -> dict:
    command = [sys.executable, str(ROOT / "training/train.py"), "--no-export", "--data", str(text)]
    started = time.monotonic()
    subprocess.run([*command, "--out", str(out), *given], check=True, capture_output=True)
    minutes = (time.monotonic() - started) / 60
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "train"]
    record = json.loads((out / "model.json").read_text())
    return {
        "config": record["config"],
        "nats_per_byte": record["validation_nats_per_byte"],
        "best_step": record["step"],
        "minutes": minutes,
        "tokens_per_second": statistics.median(speeds),
        "threads": record["threads"],
    }


def shown(row: dict) -> str:
    config = row["config"]
    return (
        f"{config['preset']}, {config['steps']} steps, rate {config['muon_learning_rate']}: "
        f"{row['nats_per_byte']:.4f} nats/byte at step {row['best_step']}, {row['minutes']:.1f} "
        f"minutes, {row['tokens_per_second']:,.0f} tokens/s, threads {row['threads']}"
    )


if __name__ == "__main__":
    sys.exit(main())

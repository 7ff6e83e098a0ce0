"""The law by which train.py tells what loss to expect: fitted, and how far off it is.

    python benchmarks/loss_law.py                  # fits benchmarks/loss_law.jsonl
    python benchmarks/loss_law.py runs/mine …      # adds finished runs to it first

Exponents come from runs on the same text: least squares on logarithms, each text with a constant
of its own; the scale is the mean of those. For each run, what the law expects over what came; then
the same where the law was fitted without that text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from results import append, read

from tsm.training.data import recorded_corpus
from tsm.training.loss_law import factor, ngram_loss, worth

RESULTS = Path(__file__).with_suffix(".jsonl")
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders that train.py wrote")
    for run in parser.parse_args().runs:
        append(RESULTS, row_of(run))
    rows = read(RESULTS)
    scale, tokens, parameters = fit(rows)
    print(f"SCALE, TOKENS, PARAMETERS = {scale:.3f}, {tokens:.3f}, {parameters:.3f}")
    for row in rows:
        others = fit([other for other in rows if other["text"] != row["text"]])
        ratios = [expected(row, *law) / row["nats_per_byte"] for law in (fit(rows), others)]
        print(
            f"{row['text']:>20} {row['parameters'] / 1e6:6.2f}M {row['tokens'] / 1e6:6.2f}M tokens "
            f"{row['nats_per_byte']:.3f} nats/byte, expected {ratios[0]:.2f} of it, "
            f"without its text {ratios[1]:.2f}"
        )
    return 0


def row_of(run: Path) -> Row:
    record = json.loads((run / "model.json").read_bytes())
    config, corpus = record["config"], recorded_corpus(record, 1)
    assert corpus, f"{run}: its text is gone"
    return {
        "text": record["command"].split("--data ")[1].split()[0].rpartition("/")[2],
        "ngram_nats_per_byte": ngram_loss(corpus),
        "bytes": len(corpus.train),
        "parameters": record["parameters"],
        "tokens": config["steps"] * config["batch"] * config["window"],
        "nats_per_byte": record["validation_nats_per_byte"],
    }


def expected(row: Row, scale: float, *exponents: float) -> float:
    sizes = row["bytes"], row["parameters"], row["tokens"]
    return scale * row["ngram_nats_per_byte"] * factor(*sizes, *exponents)


def fit(rows: list[Row]) -> tuple[float, float, float]:
    """Scale, exponent of the tokens, exponent of the parameters."""
    texts = sorted({row["text"] for row in rows})
    wanted = [math.log(row["nats_per_byte"] / row["ngram_nats_per_byte"]) for row in rows]
    inputs = [
        [-math.log(worth(row["bytes"], row["tokens"])), -math.log(row["parameters"])]
        + [float(row["text"] == text) for text in texts]
        for row in rows
    ]
    found = np.linalg.lstsq(np.array(inputs), np.array(wanted), rcond=None)[0]
    return math.exp(found[2:].mean()), found[0], found[1]


if __name__ == "__main__":
    sys.exit(main())

"""The four schedules of training/schedule.py on a proxy, each tuned with equal effort.

    python benchmarks/schedules.py               # goes on where it was stopped
    python benchmarks/schedules.py --table       # what has been measured so far

Every schedule is tried at the same learning rates with seed 0; its best goes on to the other seeds.
The mean holds seed 0, which chose the rate, in its favour, alike for all.
q makes its decisions inside the same number of steps, so what exploring costs it is counted.
Each finished run is a line of schedules.jsonl: 24 runs, some 50 minutes at 7,000 tokens/s on one
thread.
All see equal tokens in equal steps; compared are validation nats/byte of the averaged weights on
128 evenly spaced fresh windows.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from results import append, read
from rich.progress import track

from tsm.training import model
from tsm.training.config import RunError, TrainConfig, check
from tsm.training.data import Corpus, DataError, open_corpus
from tsm.training.engine_torch import Engine
from tsm.training.run import advance, fresh, scheduled, validation_windows
from tsm.training.schedule import SCHEDULES
from tsm.training.spec import PRESETS

SPEC = PRESETS["shakespeare"].replace(width=96, layers=4, heads=3, value_width=56)
# Of Muon; AdamW's keeps its default proportion to it. One wide grid for all: schedule-free is said
# to want a higher one (arXiv 2405.15682), and q moves its own.
RATES = (0.01, 0.02, 0.04, 0.08)
# The average of the last 50 steps or so: the default, 200, is long for a run of 400.
CONFIG = TrainConfig(
    steps=400,
    batch=8,
    window=256,
    warmup_steps=20,
    weight_decay=0.1,
    dropout=0.1,
    average_decay=0.98,
    eval_windows=128,
)
RESULTS = Path(__file__).with_suffix(".jsonl")
ADAM_PROPORTION = CONFIG.adam_learning_rate / CONFIG.muon_learning_rate


def main() -> int:
    arguments = _parse()
    torch.set_num_threads(1)
    config = replace(CONFIG, steps=arguments.steps, eval_windows=arguments.eval_windows)
    try:
        for rate in arguments.rates:
            check(replace(config, muon_learning_rate=rate))
        corpus = open_corpus(arguments.data, config.window)
    except (DataError, RunError) as error:
        print(f"schedules: {error}", file=sys.stderr)
        return 2
    results = alike(read(arguments.out), config)
    if arguments.table:
        print(table(results))
        return 0
    for seeds in ([0], range(1, arguments.seeds)):  # the second round needs the first's results
        for wanted in list(_waiting(config, results, seeds, arguments.rates)):
            found = {"config": asdict(wanted), "nats_per_byte": _train(wanted, corpus)}
            results.append(append(arguments.out, found))
    print(table(results))
    return 0


def _waiting(
    config: TrainConfig, results: list[dict[str, Any]], seeds: Any, rates: list[float]
) -> Iterator[TrainConfig]:
    """The runs still to be made: with seed 0 at every rate, with the others at the best."""
    done = [result["config"] for result in results]
    for schedule in SCHEDULES:
        for seed in seeds:
            for rate in rates if seed == 0 else [best_rate(results, schedule)]:
                both = {"muon_learning_rate": rate, "adam_learning_rate": ADAM_PROPORTION * rate}
                wanted = replace(config, schedule=schedule, seed=seed, **both)
                if asdict(wanted) not in done:
                    yield wanted


def _train(config: TrainConfig, corpus: Corpus) -> float:
    """Nats per byte of validation after a whole run; infinite where it diverged."""
    engine, schedule = Engine(SPEC, config.dropout, bf16=False, compiled=False), scheduled(config)
    run = fresh(engine, schedule, model.initialise(SPEC, config.seed))
    name = f"{config.schedule}, rate {config.muon_learning_rate}, seed {config.seed}"
    for _ in track(range(config.steps), name):
        loss, norm = advance(engine, run, schedule, config, corpus)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return math.inf
    return float(engine.losses(run.average, validation_windows(corpus, config)).mean())


def _of(results: list[dict[str, Any]], **wanted: Any) -> list[float]:
    """Nats per byte of the runs whose config has these values."""
    return [r["nats_per_byte"] for r in results if wanted.items() <= r["config"].items()]


def best_rate(results: list[dict[str, Any]], schedule: str) -> float:
    rates = {
        r["config"]["muon_learning_rate"] for r in results if r["config"]["schedule"] == schedule
    }
    return min(
        sorted(rates), key=lambda r: _of(results, schedule=schedule, seed=0, muon_learning_rate=r)
    )


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| schedule | nats/byte | spread | learning rate | each learning rate, seed 0 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for schedule in SCHEDULES:
        if not _of(results, schedule=schedule):
            continue
        best = best_rate(results, schedule)
        losses = _of(results, schedule=schedule, muon_learning_rate=best)
        comparable = len(losses) > 1 and all(map(math.isfinite, losses))
        spread = f"{statistics.stdev(losses):.4f}" if comparable else ""
        first = {
            r["config"]["muon_learning_rate"]: r["nats_per_byte"]
            for r in results
            if r["config"]["schedule"] == schedule and r["config"]["seed"] == 0
        }
        rates = ", ".join(f"{rate}: {nats:.3f}" for rate, nats in sorted(first.items()))
        mean = f"{statistics.mean(losses):.4f}"
        lines.append(f"| {schedule} | {mean} | {spread} | {best} | {rates} |")
    return "\n".join(lines)


def alike(results: list[dict[str, Any]], config: TrainConfig = CONFIG) -> list[dict[str, Any]]:
    """The finished runs of this length and protocol."""
    varied = ("schedule", "seed", "muon_learning_rate", "adam_learning_rate")
    fixed = {name: value for name, value in asdict(config).items() if name not in varied}
    defaults = asdict(TrainConfig())  # of settings that came after a result
    return [r for r in results if fixed.items() <= (defaults | r["config"]).items()]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="shakespeare", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=CONFIG.steps, help="default: %(default)s")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--eval-windows", type=int, default=CONFIG.eval_windows)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy of every mixer on the recall tasks, by distance, at equal parameters and equal tokens.

    python benchmarks/recall.py                 # goes on where it was stopped
    python benchmarks/recall.py --table         # what has been measured so far

Systems are those of quality.py with 2 layers. Each is trained by the product's own step on a
corpus of training/tasks.py long enough that no byte is seen twice, in windows of 256, so that
distances above 192 were never seen; the loss counts every byte, not the answers alone. Then it is
evaluated, averaged weights in fp32, on examples whose seeds no corpus has. A result is a line of
recall.jsonl: one (task, mixer, seed) at one protocol. One thread.

All have one peak rate, and recall is known to be sensitive to it (arXiv 2508.19029): a mixer that
fails here may succeed at another --rate, whose results stand beside these.
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

import numpy as np
import torch
from quality import ADAM_FRACTION, AVERAGE_DECAY, DECAY, SEEDS, SYSTEMS, TOKENS, WARMUP, WINDOW
from results import append, read
from rich.progress import track

from tsm.training import model, tasks
from tsm.training.data import Corpus, DataError
from tsm.training.engine_torch import Engine
from tsm.training.evaluate import DISTANCES, EXAMPLES, recall, weights_scorer
from tsm.training.spec import parameter_count
from tsm.training.tasks import TASKS, evaluation_examples
from tsm.training.train import RunError, TrainConfig, advance, check, fresh, scheduled

LAYERS = 2  # the fewest that can make an induction head (Olsson et al., 2022, arXiv 2209.11895)
COMPARED = (
    "TSM",
    "TSM, a matrix per head",
    "attention",
    "Performer",
    "Linformer (block-causal)",
    "minGRU",
    "seed mixer (causal)",
)
HYBRID = "beam,attention"  # the last layer is attention over the 256 bytes before
MIXERS = {SYSTEMS[name].mixer: replace(SYSTEMS[name], layers=LAYERS) for name in COMPARED}
MIXERS[HYBRID] = replace(SYSTEMS["TSM"], layers=LAYERS, mixer=HYBRID)
# preset: a name of train.py's own table, which the specs here take the place of.
CONFIG = TrainConfig(
    steps=3000,  # attention finds MQAR between 1,800 and 2,200
    batch=TOKENS // WINDOW,
    window=WINDOW,
    adam_rate=ADAM_FRACTION * TrainConfig.muon_rate,
    warmup_steps=WARMUP,
    decay_fraction=DECAY,
    weight_decay=0.1,
    dropout=0.0,  # nothing is seen twice
    average_decay=AVERAGE_DECAY,
    precision="bf16",
    compiled=True,
)
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    torch.set_num_threads(1)
    rates = {"muon_rate": arguments.rate, "adam_rate": ADAM_FRACTION * arguments.rate}
    config = replace(CONFIG, steps=arguments.steps, **rates)
    results = read(arguments.out)
    try:
        check(config)
        if not arguments.table:
            for task in arguments.tasks:  # before hours of training, not after
                for distance in arguments.distances:
                    evaluation_examples(task, distance, 1)
            for task, mixer, wanted in list(_waiting(results, arguments, config)):
                found = measure(task, mixer, wanted, arguments.distances, arguments.examples)
                results.append(append(arguments.out, found))
    except (DataError, OSError, RunError) as error:
        print(f"recall: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(results))
    return 0


def _waiting(
    results: list[dict[str, Any]], arguments: argparse.Namespace, config: TrainConfig
) -> Iterator[tuple[str, str, TrainConfig]]:
    """Every seed's runs come before the next seed's."""
    names = ("task", "mixer", "config", "examples", "distances")
    done = [tuple(r[name] for name in names) for r in results]
    how = arguments.examples, arguments.distances
    for seed in arguments.seeds:
        wanted = replace(config, seed=seed)
        for task in arguments.tasks:
            for mixer in arguments.mixers:
                if (task, mixer, asdict(wanted), *how) not in done:
                    yield task, mixer, wanted


def measure(
    task: str, mixer: str, config: TrainConfig, distances: list[int], examples: int
) -> dict[str, Any]:
    """A model trained and evaluated; no rows of one that diverged."""
    spec = MIXERS[mixer]
    # One window more than the updates take, as each epoch of data.batch begins at an offset.
    size = (config.steps * config.batch + 1) * config.window + 1
    data = np.frombuffer(tasks.corpus(task, size, config.seed), np.uint8)
    corpus = Corpus(Path(task), data, data[:0])
    bf16 = config.precision == "bf16"
    engine, schedule = Engine(spec, config.dropout, bf16, config.compiled), scheduled(config)
    run = fresh(engine, schedule, model.initialise(spec, config.seed))
    rows = []
    for _ in track(range(config.steps), f"{task}, {mixer}, seed {config.seed}"):
        loss, norm = advance(engine, run, schedule, config, corpus)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            break
    else:
        score = weights_scorer(spec, engine.save(run.average))
        rows = recall(score, task, distances, examples)["distances"]
    return {
        "task": task,
        "mixer": mixer,
        "seed": config.seed,
        "examples": examples,
        "parameters": parameter_count(spec),
        "distances": distances,
        "rows": rows,
        "spec": asdict(spec),
        "config": asdict(config),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Accuracy, and in brackets the part of answer bytes that are right: means over the
    seeds that did not diverge."""
    distances = sorted({row["distance"] for r in results for row in r["rows"]})
    names = ["task", "mixer", "parameters", "updates", "rate", "examples", "seeds"]
    names += map(str, distances)
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for r in results:
        config = r["config"]
        protocol = r["parameters"], config["steps"], config["muon_rate"], r["examples"]
        groups.setdefault((r["task"], r["mixer"], *protocol), []).append(r)
    for key, group in sorted(groups.items()):
        diverged = sum(not r["rows"] for r in group)
        seeds = f"{len(group)}, {diverged} diverged" if diverged else str(len(group))
        cells = [*map(str, key), seeds]
        for distance in distances:
            rows = [row for r in group for row in r["rows"] if row["distance"] == distance]
            means = [
                statistics.mean(row[name] for row in rows)
                for name in ("accuracy", "byte_accuracy")
                if rows
            ]
            cells.append("{:.2f} ({:.2f})".format(*means) if means else "")
        lines.append("| " + " | ".join(cells) + " |")
    chances = [f"{name} {1 / task.alphabet:.3f}" for name, task in TASKS.items()]
    return "\n".join([*lines, "", f"Chance, of an answer byte: {', '.join(chances)}."])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument(
        "--tasks", choices=TASKS, default=list(TASKS), help=f"of {', '.join(TASKS)}", **several
    )
    parser.add_argument(
        "--mixers", choices=MIXERS, default=list(MIXERS), help=f"of {', '.join(MIXERS)}", **several
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=CONFIG.steps, help="default: %(default)s")
    parser.add_argument(
        "--rate", type=float, default=CONFIG.muon_rate, help="peak, of Muon (default: %(default)s)"
    )
    parser.add_argument("--distances", type=int, nargs="+", default=list(DISTANCES))
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if arguments.examples < 1:
        parser.error("--examples wants at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

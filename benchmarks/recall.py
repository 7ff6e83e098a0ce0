"""Accuracy of every mixer on the recall tasks, by distance, at equal parameters and equal tokens.

    python benchmarks/recall.py                 # goes on where it was stopped
    python benchmarks/recall.py --table         # what has been measured so far

Systems are those of quality.py with 2 layers. Each is trained by the product's own step in JAX
on a corpus of training/tasks.py long enough that no byte is seen twice, in windows of 256, so that
distances above 192 were never seen; the loss counts every byte, not the answers alone. Then it is
evaluated, averaged weights in fp32 on the CPU, on 50 examples a distance whose seeds no corpus has.
A result is a line of recall.jsonl: one (task, mixer, seed, rate) at one protocol.

Recall is known to be sensitive to the rate (arXiv 2508.19029), and all have one: a mixer that fails
here may succeed at another of --rates. Of several rates the table has the one with the most bytes
right at the distances of the corpus; a run that diverged has none. All runs of a mixer are one
program (vmap), made for a GPU: nine take a minute of an H100, a CPU takes hours.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from quality import (
    ADAM_FRACTION,
    AVERAGE_DECAY,
    DECAY,
    MATRIX,
    SEEDS,
    SYSTEMS,
    TOKENS,
    WARMUP,
    WINDOW,
)
from results import append, read
from rich.progress import track

from tsm.training import data, model, tasks
from tsm.training.config import RunError, TrainConfig, check
from tsm.training.data import DataError
from tsm.training.engine_jax import Engine
from tsm.training.evaluate import DISTANCES, EXAMPLES, recall, weights_scorer
from tsm.training.run import scheduled
from tsm.training.spec import ModelSpec, parameter_count
from tsm.training.tasks import TASKS, evaluation_examples

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
MIXERS = {SYSTEMS[name].mixer: SYSTEMS[name].replace(layers=LAYERS) for name in COMPARED}
MIXERS[HYBRID] = SYSTEMS["TSM"].replace(layers=LAYERS, mixer=HYBRID)
ADDRESSED = MATRIX.replace(layers=LAYERS, mixer="addressed", rotation=False, value_width=51)
MIXERS["addressed"] = ADDRESSED
RATES = (0.02,)  # of Muon
# preset: a name of train.py's own table, which the specs here take the place of.
CONFIG = TrainConfig(
    engine="jax",
    steps=3000,  # attention is on its way to mqar then, and has it after 10,000
    batch=TOKENS // WINDOW,
    window=WINDOW,
    warmup_steps=WARMUP,
    decay_fraction=DECAY,
    weight_decay=0.1,
    dropout=0.0,  # nothing is seen twice
    average_decay=AVERAGE_DECAY,
    precision="fp32",  # a GPU's products of fp32 are in tf32
)
TOGETHER = 100  # steps that wait in JAX's queue
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    config = replace(CONFIG, steps=arguments.steps)
    results = read(arguments.out)
    try:
        check(config)
        if not arguments.table:
            for task in arguments.tasks:  # before hours of training, not after
                for distance in arguments.distances:
                    evaluation_examples(task, distance, 1)
            for mixer in arguments.mixers:
                runs = list(_waiting(results, arguments, mixer, config))
                if runs:
                    for found in measure(mixer, runs, arguments.distances, arguments.examples):
                        results.append(append(arguments.out, found))
    except (DataError, OSError, RunError) as error:
        print(f"recall: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(results))
    return 0


def _waiting(
    results: list[dict[str, Any]], arguments: argparse.Namespace, mixer: str, config: TrainConfig
) -> Iterator[tuple[str, TrainConfig]]:
    names = ("task", "mixer", "config", "examples", "distances")
    done = [tuple(r[name] for name in names) for r in results]
    how = arguments.examples, arguments.distances
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for rate in arguments.rates:
                rates = {"muon_learning_rate": rate, "adam_learning_rate": ADAM_FRACTION * rate}
                wanted = replace(config, seed=seed, **rates)
                if (task, mixer, asdict(wanted), *how) not in done:
                    yield task, wanted


def measure(
    mixer: str, runs: list[tuple[str, TrainConfig]], distances: list[int], examples: int
) -> Iterator[dict[str, Any]]:
    """Models trained together and evaluated; no rows of one that diverged."""
    spec, config = MIXERS[mixer], runs[0][1]
    # One window more than the steps take, as each epoch of data.batch begins at an offset.
    size = (config.steps * config.batch + 1) * config.window + 1
    texts = [_corpus(task, size, c.seed) for task, c in runs]
    averages, finite = train(spec, [c for _, c in runs], texts, f"{mixer}, {len(runs)} runs")
    jobs = []
    for i, (task, _) in enumerate(runs):
        weights = {name: value[i] for name, value in averages.items()}
        jobs.append((spec, weights, task, distances if finite[i] else [], examples))
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        for (task, config), rows in zip(runs, pool.imap(_rows, jobs), strict=True):
            yield {
                "task": task,
                "mixer": mixer,
                "seed": config.seed,
                "examples": examples,
                "parameters": parameter_count(spec),
                "distances": distances,
                "rows": rows,
                "spec": spec.to_dict(),
                "config": asdict(config),
                "trained_on": jax.devices()[0].device_kind,
            }


@functools.cache
def _corpus(task: str, size: int, seed: int) -> np.ndarray:
    return np.frombuffer(tasks.corpus(task, size, seed), np.uint8)


def _rows(job: tuple[ModelSpec, dict[str, np.ndarray], str, list[int], int]) -> list[Any]:
    import torch

    torch.set_num_threads(1)
    spec, weights, task, distances, examples = job
    return recall(weights_scorer(spec, weights), task, distances, examples)["distances"]


def train(
    spec: ModelSpec, configs: list[TrainConfig], texts: list[np.ndarray], name: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Averaged weights of every run, (runs, ...) each, and which of them stayed finite. Runs differ
    in their texts, of one length, and in their seeds and rates alone."""
    config, bf16 = configs[0], configs[0].precision == "bf16"
    engine, schedule = Engine(spec, 0.0, bf16, compiled=True), scheduled(config)
    initial = [model.initialise(spec, c.seed) for c in configs]
    weights = {n: jnp.array(np.stack([one[n] for one in initial])) for n in initial[0]}
    average = {n: jnp.array(w) for n, w in weights.items()}
    state = engine.optimizer_state(weights)  # zeros
    rates = {
        n: jnp.array([getattr(c, n) for c in configs])
        for n in ("muon_learning_rate", "adam_learning_rate")
    }
    same = {"weight_decay": config.weight_decay, "clip": config.clip}
    axes = {"step": None, **dict.fromkeys(rates, 0), **dict.fromkeys(same)}
    step = jax.jit(
        jax.vmap(engine.pure_step, in_axes=(0, 0, 0, 0, None, axes, None)),
        donate_argnums=(0, 1, 2),
    )
    finite, no_key = jnp.ones(len(configs), bool), np.zeros(2, np.uint32)  # without dropout
    for i in track(range(config.steps), name):
        tokens = [
            data.batch(text, c.seed, i, config.batch, config.window)
            for c, text in zip(configs, texts, strict=True)
        ]
        fraction = schedule.fraction(i, schedule.initial_memory())
        settings = {"step": i, **{n: r * fraction for n, r in rates.items()}, **same}
        weights, state, average, loss, norm = step(
            weights, state, average, np.stack(tokens), no_key, settings, schedule.decay_at(i)
        )
        finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
        if i % TOGETHER == 0:
            jax.block_until_ready(finite)
    return engine.save(average), np.array(finite)


def table(results: list[dict[str, Any]]) -> str:
    """The share of answer bytes that are right, by task and distance: means over the seeds, at the
    learning rate that is best at the distances of the corpus."""
    distances = sorted({row["distance"] for r in results for row in r["rows"]})
    columns = [(task, d) for task in TASKS for d in distances]
    names = ["mixer", *(f"{task} {d}" for task, d in columns)]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for mixer, steps in sorted({(r["mixer"], r["config"]["steps"]) for r in results}):
        cells = [mixer if steps == CONFIG.steps else f"{mixer}, {steps:,} steps"]
        for task, distance in columns:
            rates: dict[float, list[dict[str, Any]]] = {}
            for r in results:
                if (r["task"], r["mixer"], r["config"]["steps"]) == (task, mixer, steps):
                    rates.setdefault(r["config"]["muon_learning_rate"], []).append(r)
            runs = max(rates.values(), key=_bytes_right, default=[])
            right = [_right(r, distance, distance) for r in runs]
            cells.append(f"{statistics.mean(right):.2f}" if right else "")
        lines.append("| " + " | ".join(cells) + " |")
    chance = ", ".join(f"{name} {1 / task.alphabet:.2f}" for name, task in TASKS.items())
    return "\n".join([*lines, "", f"Chance: {chance}."])


def _bytes_right(runs: list[dict[str, Any]]) -> float:
    return statistics.mean(_right(r, 0, tasks.LONGEST) for r in runs)


def _right(run: dict[str, Any], shortest: int, longest: int) -> float:
    """Of the answer bytes at these distances; none of a run that diverged."""
    rows = [r["byte_accuracy"] for r in run["rows"] if shortest <= r["distance"] <= longest]
    return statistics.mean(rows or [0.0])


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
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--distances", type=int, nargs="+", default=list(DISTANCES))
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    if arguments.examples < 1:
        parser.error("--examples wants at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

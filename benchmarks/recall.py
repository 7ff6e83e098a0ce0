"""Accuracy of every mixer on the recall tasks, by distance, at equal parameters and equal tokens.

    python benchmarks/recall.py                 # goes on where it was stopped
    python benchmarks/recall.py --table         # what has been measured so far
    python benchmarks/recall.py --answers --tasks mqar --mixers addressed beam --rates 0.008 \\
        --width 64 --batch 32 --window 48 --steps 2500          # for one core of a CPU

Systems are those of quality.py with 2 layers. Each is trained by the product's own step in JAX
on a corpus of training/tasks.py long enough that no byte is seen twice, in windows of 256, so that
distances above 192 were never seen; the loss counts every byte. Then it is evaluated, averaged
weights in fp32 on the CPU, on 50 examples a distance whose seeds no corpus has. A result is a line
of recall.jsonl: one (task, mixer, seed, rate) at one protocol.

--answers is the protocol in which recall is learned soon: the answers alone count, in windows of
whole examples, for many pairs of fewer as well, drawn as the training goes on, and AdamW trains all
weights at the rate given.

Recall is known to be sensitive to the rate (arXiv 2508.19029), and all have one: a mixer that fails
here may succeed at another of --rates. Of several rates the table has the one with the most bytes
right at the distances of the corpus; a run that diverged has none. On a GPU all runs of a mixer
are one program (vmap): nine take a minute of an H100. A CPU makes one run after the other, and
takes hours but for small models: --width, in heads of --head, --batch and --window. The mean loss
of every 100 steps is kept with the result.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator
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
BY_DEFAULT = ["mqar", "copying", "passkey"]  # of the tasks
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
ANSWERS = "answers"  # what counted in the training of a result
TOGETHER = 100  # steps that wait in JAX's queue, and whose mean loss is a point of the curve
HEAD = 32  # keys and values of the smaller models
# Many pairs are learned beside fewer.
BESIDE = {"mqar-16": ("mqar",), "mqar-64": ("mqar", "mqar-16")}
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    config = replace(CONFIG, steps=arguments.steps, batch=arguments.batch, window=arguments.window)
    results = read(arguments.out)
    try:
        check(config)
        if not arguments.table:
            for task in arguments.tasks:  # before hours of training, not after
                for distance in arguments.distances:
                    evaluation_examples(task, distance, 1)
            for mixer in arguments.mixers:
                runs = list(_waiting(results, arguments, mixer, config))
                at_once = 1 if jax.default_backend() == "cpu" else max(1, len(runs))
                for i in range(0, len(runs), at_once):
                    for found in measure(mixer, runs[i : i + at_once], arguments):
                        results.append(append(arguments.out, found))
    except (DataError, OSError, RunError) as error:
        print(f"recall: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(of_every_byte(results)))
    print(f"\nThe answers alone counted in training:\n\n{answers_table(results)}")
    return 0


def spec_of(mixer: str, width: int, head: int | None) -> ModelSpec:
    """As in `MIXERS`, or of another width, or in heads of `head`."""
    if width == MIXERS[mixer].width and head is None:
        return MIXERS[mixer]
    head = head or HEAD
    heads = {"heads": width // head, "key_width": head, "value_width": head}
    return MIXERS[mixer].replace(width=width, chunk=16, **heads)


def _waiting(
    results: list[dict[str, Any]], arguments: argparse.Namespace, mixer: str, config: TrainConfig
) -> Iterator[tuple[str, TrainConfig]]:
    names = ("task", "mixer", "examples", "distances")
    done = [
        (
            *(r[name] for name in names),
            asdict(CONFIG) | r["config"],
            (r["spec"]["width"], r["spec"]["key_width"]),
            r.get("counted"),
            r.get("practised", [r["task"]]),
        )
        for r in results
    ]
    how = mixer, arguments.examples, arguments.distances
    spec = spec_of(mixer, arguments.width, arguments.head)
    kind = (spec.width, spec.key_width), ANSWERS if arguments.answers else None
    for task in arguments.tasks:
        for seed in arguments.seeds:
            for rate in arguments.rates:
                rates = {"muon_learning_rate": rate, "adam_learning_rate": ADAM_FRACTION * rate}
                if arguments.answers:
                    rates = {"muon_learning_rate": 0.0, "adam_learning_rate": rate}
                wanted = replace(config, seed=seed, **rates)
                if (task, *how, asdict(wanted), *kind, _practised(task)) not in done:
                    yield task, wanted


def measure(
    mixer: str, runs: list[tuple[str, TrainConfig]], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Models trained together and evaluated; no rows of one that diverged."""
    distances, examples = arguments.distances, arguments.examples
    spec, config = spec_of(mixer, arguments.width, arguments.head), runs[0][1]
    if arguments.answers:
        draws = [functools.partial(_passages, task, c) for task, c in runs]
    else:
        # One window more than the steps take, as each epoch of data.batch begins at an offset.
        size = (config.steps * config.batch + 1) * config.window + 1
        draws = [functools.partial(_text, _corpus(task, size, c.seed), c) for task, c in runs]
    name = f"{mixer}, {len(runs)} runs"
    averages, finite, curves = train(spec, [c for _, c in runs], draws, name)
    jobs = []
    for i, (task, _) in enumerate(runs):
        weights = {name: value[i] for name, value in averages.items()}
        jobs.append((spec, weights, task, distances if finite[i] else [], examples))
    with multiprocessing.get_context("spawn").Pool(min(len(jobs), os.cpu_count() or 1)) as pool:
        evaluated = zip(runs, curves, pool.imap(_rows, jobs), strict=True)
        for (task, config), curve, rows in evaluated:
            yield {
                "task": task,
                "mixer": mixer,
                "seed": config.seed,
                "examples": examples,
                "parameters": parameter_count(spec),
                "distances": distances,
                "rows": rows,
                **(
                    {"counted": ANSWERS, "practised": _practised(task)} if arguments.answers else {}
                ),
                "curve": curve,
                "spec": spec.to_dict(),
                "config": asdict(config),
                "trained_on": jax.devices()[0].device_kind,
            }


Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]  # of a step: windows, what targets count


def _text(text: np.ndarray, config: TrainConfig, step: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = data.batch(text, config.seed, step, config.batch, config.window)
    return tokens, np.ones((config.batch, config.window), np.float32)


def _practised(task: str) -> list[str]:
    return [*BESIDE.get(task, ()), task]


def _passages(task: str, config: TrainConfig, step: int) -> tuple[np.ndarray, np.ndarray]:
    practised = [TASKS[name] for name in _practised(task)]
    return tasks.windows(practised, config.seed, step, config.batch, config.window)


@functools.cache
def _corpus(task: str, size: int, seed: int) -> np.ndarray:
    return np.frombuffer(tasks.corpus(task, size, seed), np.uint8)


def _rows(job: tuple[ModelSpec, dict[str, np.ndarray], str, list[int], int]) -> list[Any]:
    import torch

    torch.set_num_threads(1)
    spec, weights, task, distances, examples = job
    return recall(weights_scorer(spec, weights), task, distances, examples)["distances"]


def train(
    spec: ModelSpec, configs: list[TrainConfig], draws: list[Draw], name: str
) -> tuple[dict[str, np.ndarray], np.ndarray, list[list[float]]]:
    """Averaged weights of every run, (runs, ...) each, which of them stayed finite, and the mean
    loss of each TOGETHER steps. Runs differ in what they draw, and in their seeds and rates alone.
    """
    config, bf16 = configs[0], configs[0].precision == "bf16"
    engine, schedule = Engine(spec, 0.0, bf16, compiled=True), scheduled(config)
    if not any(c.muon_learning_rate for c in configs):
        engine.table = {name: replace(row, muon=False) for name, row in engine.table.items()}
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
        jax.vmap(engine.pure_step, in_axes=(0, 0, 0, 0, None, axes, None, None, 0)),
        donate_argnums=(0, 1, 2),
    )
    finite, no_key = jnp.ones(len(configs), bool), np.zeros(2, np.uint32)  # without dropout
    losses: list[Any] = []
    for i in track(range(config.steps), name):
        tokens, counts = (np.stack(x) for x in zip(*(draw(i) for draw in draws), strict=True))
        fraction = schedule.fraction(i, schedule.initial_memory())
        settings = {"step": i, **{n: r * fraction for n, r in rates.items()}, **same}
        weights, state, average, loss, norm = step(
            weights,
            state,
            average,
            tokens,
            no_key,
            settings,
            schedule.decay_at(i),
            schedule.toward_average,
            counts,
        )
        losses.append(loss)
        finite &= jnp.isfinite(loss) & jnp.isfinite(norm)
        if i % TOGETHER == 0:
            jax.block_until_ready(finite)
    means = [np.mean(losses[i : i + TOGETHER], axis=0) for i in range(0, len(losses), TOGETHER)]
    curves = np.round(np.array(means, float), 4).T.tolist()  # (runs, points)
    return engine.save(average), np.array(finite), curves


def of_every_byte(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose training counted every byte."""
    return [r for r in results if "counted" not in r]


def of_answers(results: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[int, float]]:
    """Of the runs whose answers alone counted, by task, mixer, width, steps and window: the share
    of whole answers that are right, by distance; means over the seeds, at the best learning
    rate."""
    groups: dict[tuple[Any, ...], dict[float, list[dict[str, Any]]]] = {}
    for r in results:
        if r.get("counted") == ANSWERS:
            spec, config = r["spec"], r["config"]
            key = r["task"], r["mixer"], spec["width"]
            rates = groups.setdefault((*key, config["steps"], config["window"]), {})
            rates.setdefault(config["adam_learning_rate"], []).append(r)
    found = {}
    for key, rates in sorted(groups.items()):
        whole: dict[int, list[float]] = {}
        for run in max(rates.values(), key=_bytes_right):
            for row in run["rows"]:
                whole.setdefault(row["distance"], []).append(row["accuracy"])
        found[key] = {d: statistics.mean(shares) for d, shares in sorted(whole.items())}
    return found


def answers_table(results: list[dict[str, Any]]) -> str:
    """`of_answers` in Markdown."""
    groups = of_answers(results)
    distances = sorted({distance for shares in groups.values() for distance in shares})
    names = ["task", "mixer", "width", "steps", "window", *map(str, distances)]
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for key, shares in groups.items():
        cells = [f"{shares[d]:.2f}" if d in shares else "" for d in distances]
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """The share of answer bytes that are right, by task and distance: means over the seeds, at the
    learning rate that is best at the distances of the corpus."""
    distances = sorted({row["distance"] for r in results for row in r["rows"]})
    found = [task for task in TASKS if any(r["task"] == task for r in results)]
    columns = [(task, d) for task in found for d in distances]
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
    chance = ", ".join(f"{name} {1 / TASKS[name].alphabet:.2f}" for name in found)
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
        "--tasks", choices=TASKS, default=BY_DEFAULT, help=f"of {', '.join(TASKS)}", **several
    )
    parser.add_argument(
        "--mixers", choices=MIXERS, default=list(MIXERS), help=f"of {', '.join(MIXERS)}", **several
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=CONFIG.steps, help="default: %(default)s")
    parser.add_argument(
        "--answers", action="store_true", help="count the answers alone in training"
    )
    parser.add_argument("--width", type=int, default=ADDRESSED.width, help="default: %(default)s")
    parser.add_argument("--head", type=int, help=f"default: {HEAD} where --width is given")
    parser.add_argument("--batch", type=int, default=CONFIG.batch, help="default: %(default)s")
    parser.add_argument("--window", type=int, default=WINDOW, help="default: %(default)s")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--distances", type=int, nargs="+", default=list(DISTANCES))
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    arguments = parser.parse_args()
    head = HEAD if arguments.head is None else arguments.head
    if head < 1 or arguments.width < 1 or arguments.width % head:
        parser.error(f"--width {arguments.width}: wanted a multiple of {head}")
    if arguments.examples < 1:
        parser.error("--examples wants at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

"""A run that fits a time, `train.py --budget 30m`: which shape, how many steps, what to expect.

Speeds are those of a few steps of the run itself, on this machine, beside what it does meanwhile.
The loss is that of loss_law.py.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from . import config as settings
from .config import RunError, TrainConfig
from .data import Corpus
from .loss_law import expected_loss, ngram_loss
from .run import (
    Arrays,
    Models,
    advance,
    first_model,
    fresh,
    load_adapters,
    open_engine,
    scheduled,
    validation_windows,
)
from .sample import sample
from .spec import ModelSpec, parameter_count
from .threads import default_threads
from .view import duration

PROBED_STEPS, PROBED_SECONDS = 10, 3.0  # timed of a shape: the first of the two that is reached
PLANNED_SHARE = 0.9  # of the budget: a machine is not always as fast as while it was measured
EXPORT_SECONDS, EXPORT_SECONDS_A_WEIGHT = 8.0, 1.4e-6  # of a processor alone, measured
FEWEST_STEPS = 20
EVALUATED_SHARE, FEWEST_EVALUATIONS = 0.15, 5  # of the budget, where evaluations take long


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is expected of a run before it starts."""

    seconds: float  # from the start of the command to the last step
    tokens_per_second: float
    nats_per_byte: float | None  # on the held-out text; None of a model that starts from another
    threads: int
    export_seconds: float

    def shown(self, config: TrainConfig, size: int) -> str:
        """size: bytes of the text to learn from."""
        read = config.steps * config.batch * config.window
        loss = (
            f", about {self.nats_per_byte:.2f} nats/byte on held-out text"
            if self.nats_per_byte
            else ""
        )
        return (
            f"planned: {config.preset or 'the shape of --start'}, {config.steps:,} steps of "
            f"{config.batch} x {config.window} bytes at {self.tokens_per_second:,.0f} a second, "
            f"{read / size:.1f} epochs: "
            f"{duration(self.seconds + self.export_seconds)} in all{loss}"
        )


@dataclasses.dataclass(frozen=True)
class Speed:
    threads: int
    start_seconds: float  # of an engine, its compilation and its first step
    step_seconds: float
    evaluation_seconds: float
    slowness: float  # seconds that pass, a second of the processor


def choose(
    corpus: Corpus,
    given: dict[str, Any],
    teachers: Models,
    threads: int | None,
    began: float,
    export: bool,
) -> tuple[TrainConfig, Plan]:
    """The settings `given` and, for the rest, what promises the lowest loss in `given["budget"]`.
    threads: None for the fastest number. began: when the run did, by time.monotonic(). export:
    whether it ends with that. Raises RunError for a budget too short."""
    size = len(corpus.train) + len(corpus.validation)
    time_given = settings.seconds(given["budget"])
    ngram = None if given.get("start") else ngram_loss(corpus)
    best: tuple[TrainConfig, Plan] | None = None
    for preset in _candidates(size, given):
        named = {"preset": preset} if preset else {}
        config = settings.for_text(size, {**given, **named})
        spec, initial = first_model(config)
        counts = (threads,) if threads else (default_threads(spec), 1)
        speed = _measured(corpus, config, spec, initial, teachers, counts)
        config, plan = _fitted(corpus, config, spec, given, speed, began, export)
        if ngram is not None:
            sizes = len(corpus.train), parameter_count(spec)
            loss = expected_loss(ngram, *sizes, config.steps * config.batch * config.window)
            plan = dataclasses.replace(plan, nats_per_byte=loss)
        worse = best and (plan.nats_per_byte or 0) > (best[1].nats_per_byte or 0)
        if best and (worse or plan.seconds + plan.export_seconds > time_given):
            break  # a larger one is slower still
        best = config, plan
    assert best
    least = best[1].seconds + best[1].export_seconds
    if least > time_given:
        raise RunError(f"--budget {given['budget']}: wanted {duration(least)} or more")
    return best


def _candidates(size: int, given: dict[str, Any]) -> list[str]:
    """Presets up to one above that for a text of this size, the smallest first; or what is
    given."""
    if any(given.get(name) for name in ("preset", "start", "width", "layers", "channels")):
        return [""]
    largest = settings.for_text(size, given).preset
    names = [row[1] for row in settings.SMALL_TEXTS] + [settings.SETTINGS[0]]
    if given.get("compiled") or given.get("engine") == "jax":
        return [largest]  # each takes long to compile
    return names[: names.index(largest) + 2]


def _measured(
    corpus: Corpus,
    config: TrainConfig,
    spec: ModelSpec,
    initial: Arrays,
    teachers: Models,
    counts: tuple[int, ...],
) -> Speed:
    """With the number of threads, of `counts`, that is the fastest now."""
    opened = time.monotonic()
    engine, config = open_engine(config, spec, teachers, load_adapters(config, spec))
    schedule, validation = scheduled(config), validation_windows(corpus, config)
    run, step_seconds = fresh(engine, schedule, initial), {}
    advance(engine, run, schedule, config, corpus)
    start_seconds = time.monotonic() - opened
    for threads in sorted(set(counts if config.engine == "torch" else counts[:1])):
        engine.use_threads(threads)
        started, steps = time.monotonic(), 0
        while steps < PROBED_STEPS and time.monotonic() - started < PROBED_SECONDS:
            advance(engine, run, schedule, config, corpus)
            steps += 1
        step_seconds[threads] = (time.monotonic() - started) / steps
    threads = min(step_seconds, key=step_seconds.__getitem__)
    engine.use_threads(threads)
    started, worked = time.monotonic(), time.process_time()
    engine.losses(run.average, validation)
    sample(spec, engine.save(engine.whole(run.average)), settings.SAMPLE_BYTES)
    passed = time.monotonic() - started
    slowness = max(1.0, passed / (time.process_time() - worked))
    return Speed(threads, start_seconds, step_seconds[threads], passed, slowness)


def _fitted(
    corpus: Corpus,
    config: TrainConfig,
    spec: ModelSpec,
    given: dict[str, Any],
    speed: Speed,
    began: float,
    export: bool,
) -> tuple[TrainConfig, Plan]:
    """The settings with as many steps as there is time for, FEWEST_STEPS at least."""
    count, budget = parameter_count(spec), settings.seconds(config.budget)
    ending = export * (EXPORT_SECONDS + EXPORT_SECONDS_A_WEIGHT * count) * speed.slowness
    evaluations = int(EVALUATED_SHARE * budget / speed.evaluation_seconds)
    evaluations = min(max(evaluations, FEWEST_EVALUATIONS), settings.EVALUATIONS)
    around = time.monotonic() - began + speed.start_seconds
    around += evaluations * speed.evaluation_seconds
    steps = int((PLANNED_SHARE * budget - around - ending) / speed.step_seconds)
    most = settings.most_steps(len(corpus.train), config)
    most = given.get("steps", most)
    steps = max(min(steps, most), min(FEWEST_STEPS, most))
    fitted = {
        "preset": config.preset,
        "batch": config.batch,
        "eval_every": -(-steps // evaluations),
    }
    config = settings.for_text(len(corpus.train), {**fitted, **given, "steps": steps})
    tokens = config.batch * config.window
    return config, Plan(
        seconds=around + steps * speed.step_seconds,
        tokens_per_second=tokens / speed.step_seconds,
        nats_per_byte=None,
        threads=speed.threads,
        export_seconds=ending,
    )

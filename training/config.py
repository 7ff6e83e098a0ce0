"""The settings of a training run: what each means, its default, and what follows from the text."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .schedule import SCHEDULES
from .spec import PRESETS, ModelSpec

FREE_TO_CHANGE = (  # when a run goes on
    "steps",
    "decay_fraction",
    "eval_every",
    "checkpoint_every",
    "patience",
)
# Texts of fewer bytes than the first number have the preset and the batch beside it.
SMALL_TEXTS = ((200_000, "tiny", 4), (500_000, "small", 8), (1_000_000, "medium", 8))
SETTINGS = ("shakespeare", 16)  # of larger ones
# A text that is read once or twice: its markup reaches further than 256 bytes, and no part of it
# is seen often enough to be learned by heart.
LARGE_TEXT = {"window": 1024, "weight_decay": 0.1}
PRESET_SETTINGS = dict.fromkeys(("enwik8", "attention", "mingru"), LARGE_TEXT)
EPOCHS, FINE_TUNING_EPOCHS = 11, 3
FINE_TUNING_RATES = {"muon_learning_rate": 0.01, "adam_learning_rate": 0.0015}
FEWEST_STEPS = 100
EVALUATIONS = 20
SAMPLE_BYTES = 160  # of what the model writes at an evaluation
DEFAULTS_SHOWN = {
    "preset": "by the size of the text, or the shape of --start",
    "steps": f"{EPOCHS} times the text, {FINE_TUNING_EPOCHS} with --start, at most 3000",
    "muon_learning_rate": "0.02, 0.01 with --start",
    "adam_learning_rate": "0.003, 0.0015 with --start",
    "batch": "4 to 16, by the size of the text",
    "window": "256, 1024 with --preset enwik8, attention or mingru",
    "weight_decay": "0.4, 0.1 with --preset enwik8, attention or mingru",
    "warmup_steps": "50, or an eighth of the steps",
    "eval_every": "a twentieth of the steps, at most 100",
    **dict.fromkeys(("width", "layers", "channels"), "the preset's"),
}
METAVARS = {"budget": "TIME"}
MAX_SEED = 2**64 - 1


class RunError(ValueError):
    """A run that cannot start or go on, in one line."""


def _setting(default: Any, help: str, *choices: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices or None})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run besides the bytes of its data."""

    preset: str = _setting(
        "shakespeare", "shape of the model; training/spec.py has them all", *sorted(PRESETS)
    )
    width: int = _setting(0, "of the residual stream; the MLP has four times as many")
    layers: int = _setting(0, "a mixer and an MLP each")
    channels: int = _setting(0, "of a layer's state")
    start: str = _setting(
        "",
        "a model.safetensors to go on from, such as models/shakespeare.safetensors; "
        "the shape is its own",
    )
    lora: int = _setting(
        0,
        "rank: with --start, train a product of this rank beside each hidden matrix, which then "
        "is added to it; 0: train the matrices",
    )
    replay: float = _setting(
        0.0,
        "part of each batch that is taken from the text of the model of --start, which keeps it "
        "from forgetting that",
    )
    recall: float = _setting(
        0.0,
        "part of each batch, at least a window, that is passages of training/tasks.py, whose "
        "answers alone count: practice in recall",
    )
    teachers: str = _setting(
        "",
        "several model.safetensors, a comma between: their mean probabilities are learned in "
        "place of the text's bytes",
    )
    budget: str = _setting(
        "", "time for all of the run, as 90s, 30m or 8h: shape and steps are chosen to fit it"
    )
    engine: str = _setting("torch", "library that trains", "torch", "jax")
    schedule: str = _setting(
        "wsd", "of the learning rate over the run: training/schedule.py", *SCHEDULES
    )
    steps: int = _setting(3000, "length of the run, with the same command longer or shorter later")
    batch: int = _setting(16, "windows a step")
    window: int = _setting(256, "bytes that the model sees at a time")
    muon_learning_rate: float = _setting(0.02, "of the hidden matrices, which Muon trains")
    adam_learning_rate: float = _setting(0.003, "of all other weights, which AdamW trains")
    weight_decay: float = _setting(0.4, "per unit of learning rate, on the hidden matrices")
    warmup_steps: int = _setting(50, "over which the learning rate rises from 0")
    decay_fraction: float = _setting(
        0.5, "of the steps, the last, over which wsd's learning rate falls to 0"
    )
    clip: float = _setting(1.0, "bound on the norm of the gradient")
    dropout: float = _setting(0.0, "part of the activations that is zeroed in training")
    average_decay: float = _setting(
        0.995, "per step, of the averaged weights, which are evaluated and exported"
    )
    precision: str = _setting(
        "auto", "bf16, fp32, or auto: bf16 where it is fast", "auto", "fp32", "bf16"
    )
    compiled: bool = _setting(
        False, "fuse torch's operations: faster steps after about two minutes of compilation"
    )
    seed: int = _setting(0, "of the first weights, the batches and the dropout: 0 to 2^64 - 1")
    eval_every: int = _setting(100, "steps between evaluations on the held-out part")
    eval_windows: int = _setting(64, "of the held-out part, evenly spaced, that are evaluated")
    checkpoint_every: int = _setting(50, "steps between checkpoints, from which a run goes on")
    patience: int = _setting(
        5, "evaluations without a better one after which the run stops; 0: it never does"
    )


def for_text(size: int, given: dict[str, Any]) -> TrainConfig:
    """The settings `given`; those that are not suit a text of `size` bytes."""
    preset, batch = next((row[1:] for row in SMALL_TEXTS if size < row[0]), SETTINGS)
    chosen = {"preset": "" if given.get("start") else preset, "batch": batch, **given}
    chosen = {**PRESET_SETTINGS.get(chosen["preset"], {}), **chosen}
    if given.get("start"):
        chosen = {**FINE_TUNING_RATES, **chosen}
    config = TrainConfig(**chosen)
    steps = most_steps(size, config)
    chosen.setdefault("steps", min(max(steps, FEWEST_STEPS), config.steps))
    steps = chosen["steps"]
    chosen.setdefault("warmup_steps", min(config.warmup_steps, steps // 8))
    chosen.setdefault("eval_every", min(config.eval_every, max(1, steps // EVALUATIONS)))
    return TrainConfig(**chosen)


def most_steps(size: int, config: TrainConfig) -> int:
    """As many epochs of a text of `size` bytes as it is good for."""
    epochs = FINE_TUNING_EPOCHS if config.start else EPOCHS
    return round(epochs * size / (config.batch * config.window))


def spec_of(config: TrainConfig, start: ModelSpec | None = None) -> ModelSpec:
    """The shape to train. start: the shape of `config.start`, which it has to be."""
    spec = PRESETS[config.preset] if config.preset else start
    assert spec
    changes = {name: getattr(config, name) for name in ("width", "layers") if getattr(config, name)}
    if config.channels:
        if config.channels % spec.heads:
            raise RunError(
                f"--channels {config.channels}: wanted a multiple of {spec.heads}, the heads"
            )
        changes["value_width"] = config.channels // spec.heads
    spec = spec.replace(**changes)
    channels = spec.heads * spec.value_width
    lanes = 16 * spec.heads if "addressed" in spec.layer_mixers else 16
    for option, found, unit in (("width", spec.width, 8), ("channels", channels, lanes)):
        if changes and {*spec.layer_mixers} <= {"beam", "addressed"} and found % unit:
            raise RunError(
                f"--{option} {found}: wanted a multiple of {unit}, as the engines compute"
            )
    if start and start != spec:
        for name, wanted in spec.to_dict().items():
            if (found := start.to_dict().get(name)) != wanted:
                raise RunError(f"{config.start}: its {name} is {found}, the options want {wanted}")
    return spec


def check(config: TrainConfig) -> None:
    """Raises RunError for a value that no run can have."""
    counts = ("steps", "batch", "window", "eval_every", "eval_windows", "checkpoint_every")
    _bounded(config, counts, lambda x: x >= 1, "at least 1")
    rates = ("muon_learning_rate", "adam_learning_rate", "weight_decay")
    if config.lora and not config.start:
        raise RunError(f"--lora {config.lora}: wanted --start, the model to fine-tune")
    if config.replay and not config.start:
        raise RunError(f"--replay {config.replay}: wanted --start, whose text it takes")
    if config.replay + config.recall >= 1:
        raise RunError(f"--recall {config.recall}: wanted text beside it and --replay")
    if config.recall and config.teachers:
        raise RunError(f"--recall {config.recall}: wanted no --teachers, who know no answers")
    zero = ("lora", "width", "layers", "channels", "warmup_steps", "patience")
    _bounded(config, rates + zero, lambda x: 0 <= x < math.inf, "0 or more")
    _bounded(
        config,
        ("replay", "recall", "dropout", "average_decay", "decay_fraction"),
        lambda x: 0 <= x < 1,
        "in [0, 1)",
    )
    _bounded(config, ("clip",), lambda x: x > 0, "more than 0")
    _bounded(config, ("seed",), lambda x: 0 <= x <= MAX_SEED, f"0 to {MAX_SEED}")
    _bounded(config, ("budget",), lambda x: not x or seconds(x) > 0, "a time such as 90s, 30m, 8h")


def seconds(budget: str) -> float:
    """Of a time such as 90s, 30m or 8h; 0 for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0


def _bounded(
    config: TrainConfig, names: tuple[str, ...], holds: Callable[[Any], bool], wanted: str
) -> None:
    for name in names:
        if not holds(value := getattr(config, name)):
            raise RunError(f"--{name.replace('_', '-')} {value}: wanted {wanted}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each setting. What is not given stays None."""
    for f in dataclasses.fields(TrainConfig):
        option, kind = "--" + f.name.replace("_", "-"), type(f.default)
        default = "none" if f.default == "" else "no" if f.default is False else f.default
        shown = DEFAULTS_SHOWN.get(f.name, default)
        told = f"{f.metadata['help']} (default: {shown})"
        if kind is bool:
            parser.add_argument(option, action="store_true", default=None, help=told)
        else:
            choices = f.metadata["choices"]
            name = METAVARS.get(f.name, {int: "N", float: "X", str: "FILE"}[kind])
            name = None if choices else name
            parser.add_argument(option, type=kind, choices=choices, metavar=name, help=told)

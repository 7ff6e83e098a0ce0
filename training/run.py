"""A run at one moment, one step of it, and its checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.command import needs
from .checkpoint import read_arrays, write_arrays
from .config import FREE_TO_CHANGE, RunError, TrainConfig
from .data import Corpus, batch
from .schedule import SCHEDULES, Schedule
from .spec import ModelSpec, SpecError, check_weights

CHECKPOINT = "checkpoint.safetensors"  # in the run's folder
CHECKPOINT_OF_MESH = "checkpoint"  # in its place, where a run is or was on several devices
PARTS = ("weights", "optimizer", "average")


@dataclass
class Run:
    """The arrays of one moment, what the schedule has learned, and the number of steps made."""

    step: int
    memory: dict[str, Any]
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any]


def scheduled(config: TrainConfig) -> Schedule:
    return SCHEDULES[config.schedule](
        config.steps, config.warmup_steps, config.decay_fraction, config.average_decay, config.seed
    )


def fresh(engine: Any, schedule: Schedule, initial: dict[str, np.ndarray]) -> Run:
    weights, average = engine.load(initial), engine.load(initial)
    return Run(0, schedule.initial_memory(), weights, engine.optimizer_state(weights), average)


def advance(
    engine: Any, run: Run, schedule: Schedule, config: TrainConfig, corpus: Corpus
) -> tuple[float, float]:
    """One step of `run` in place; its loss, and its gradient's norm before clipping."""
    fraction = schedule.fraction(run.step, run.memory)
    settings = {
        "step": run.step,
        "muon_learning_rate": config.muon_learning_rate * fraction,
        "adam_learning_rate": config.adam_learning_rate * fraction,
        "weight_decay": config.weight_decay,
        "clip": config.clip,
        "adam_beta1": schedule.adam_beta1,
    }
    part = engine.rows(config.batch)
    tokens = batch(corpus.train, config.seed, run.step, config.batch, config.window, part)
    seed = (config.seed * 1_000_003 + run.step) % 2**64
    values = run.weights, run.optimizer, run.average
    *values, loss, norm = engine.step(
        *values, tokens, seed, settings, schedule.decay_at(run.step), schedule.toward_average
    )
    run.weights, run.optimizer, run.average = values
    if math.isfinite(loss):
        run.memory = schedule.observe(run.memory, run.step, loss)
    run.step += 1
    return loss, norm


def snapshot(
    engine: Any, run: Run, spec: ModelSpec, record: dict[str, Any], seconds: float
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a checkpoint holds: arrays and metadata."""
    arrays = {
        f"{part}/{name}": array
        for part in PARTS
        for name, array in engine.kept(getattr(run, part)).items()
    }
    texts = {"memory": run.memory, "record": record}
    metadata = {name: json.dumps(value) for name, value in texts.items()}
    return arrays, {
        **metadata,
        "step": str(run.step),
        "seconds": str(seconds),
        "spec": spec.to_json(),
    }


@dataclass(frozen=True)
class Checkpoint:
    """What a snapshot was made of, read back. The arrays are NumPy's."""

    run: Run
    spec: ModelSpec
    record: dict[str, Any]
    seconds: float  # that the run has taken


class CheckpointFile:
    """The checkpoint of a run on one device; checkpoint_folder.py has that of a mesh."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        write_arrays(self.path, arrays, metadata)

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return read_arrays(self.path)

    def close(self) -> None:
        pass


def checkpoint_in(out: Path, on_mesh: bool = False) -> Any:
    """Where the checkpoints of the run in that folder are. on_mesh: new ones, at least."""
    if on_mesh or (out / CHECKPOINT_OF_MESH).exists():
        with needs("tsm-train", "train-jax"):
            from .checkpoint_folder import CheckpointFolder
        return CheckpointFolder(out / CHECKPOINT_OF_MESH)
    return CheckpointFile(out / CHECKPOINT)


def read_checkpoint(out: Path) -> Checkpoint | None:
    """Of the run in that folder. Raises RunError for a file that is no checkpoint."""
    checkpoints = checkpoint_in(out)
    path = checkpoints.path
    if not path.exists():
        return None
    arrays, metadata = checkpoints.read()
    checkpoints.close()
    try:
        spec, record = ModelSpec.from_json(metadata["spec"]), json.loads(metadata["record"])
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        for name, array in arrays.items():
            part, name = name.split("/", 1)
            parts[part][name] = array
        check_weights(spec, parts["weights"], str(path))
        check_weights(spec, parts["average"], str(path))
        memory = json.loads(metadata["memory"])
        run = Run(int(metadata["step"]), memory, **parts)
        TrainConfig(**record["config"])
        return Checkpoint(run, spec, record, float(metadata["seconds"]))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise RunError(f"{path}: not a checkpoint of train.py, wanted one, or no file") from None


def check_unchanged(out: Path, stored: dict[str, Any], record: dict[str, Any]) -> None:
    """Raises RunError unless a run with this record may go on from one with that stored."""
    started = {**asdict(TrainConfig()), **stored["config"]}
    for name, value in {**record["config"], "data_sha256": record["data_sha256"]}.items():
        found = stored["data_sha256"] if name == "data_sha256" else started[name]
        if found != value and name not in FREE_TO_CHANGE:
            how = f"{name} {found!r}, now {value!r}"
            if name == "data_sha256":
                how = "another text, or this one has changed since"
            raise RunError(f"{out}: was started with {how}; give the same, or another --out")
    if stored.get("teachers_sha256") != record.get("teachers_sha256"):
        raise RunError(
            f"{out}: its teachers have changed since it was started; "
            "give the same, or another --out"
        )

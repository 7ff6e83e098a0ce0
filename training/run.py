"""What a run starts with, the run at one moment, one step of it, and its checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.command import needs
from . import config as settings
from . import model, tasks
from .checkpoint import load_model, read_arrays, read_metadata, write_arrays
from .config import FREE_TO_CHANGE, RunError, TrainConfig
from .data import Corpus, batch, recorded_corpus
from .lora import Adapters, adapter_table
from .schedule import SCHEDULES, Schedule
from .spec import ModelSpec, SpecError, check_table, weights

# In the run's folder.
CHECKPOINT, MODEL, RECORD = "checkpoint.safetensors", "model.safetensors", "model.json"
CHECKPOINT_OF_MESH = "checkpoint"  # in its place, where a run is or was on several devices
PARTS = ("weights", "optimizer", "average")

Arrays = dict[str, np.ndarray]
Models = list[tuple[ModelSpec, Arrays]]


def first_model(config: TrainConfig) -> tuple[ModelSpec, Arrays]:
    """The shape and the weights that a new run starts with."""
    if not config.start:
        spec = settings.spec_of(config)
        return spec, model.initialise(spec, config.seed)
    spec, values = load_model(config.start)
    spec = settings.spec_of(config, spec)
    if config.lora:
        values = model.initialise_table(adapter_table(spec, config.lora), config.seed)
    return spec, values


def load_adapters(config: TrainConfig, spec: ModelSpec) -> Adapters | None:
    """What is trained with --lora, beside the weights that it was started from."""
    if not config.lora:
        return None
    return Adapters(load_model(config.start)[1], adapter_table(spec, config.lora))


def original_corpus(config: TrainConfig) -> Corpus | None:
    """The text that the model of --start was trained on, where it can be had."""
    try:
        record = json.loads(Path(config.start).with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return None
    return recorded_corpus(record, config.window) if isinstance(record, dict) else None


def load_teachers(config: TrainConfig, spec: ModelSpec) -> Models:
    """spec: of the model that is to learn from them."""
    teachers = []
    for path in config.teachers.split(",") if config.teachers else []:
        if not path:
            raise RunError(f"--teachers {config.teachers}: an empty name, wanted a comma between")
        teachers.append(load_model(path))
        found = teachers[-1][0].vocabulary
        if found != spec.vocabulary:
            raise RunError(f"{path}: its vocabulary is {found}, wanted {spec.vocabulary}")
    return teachers


def open_engine(
    config: TrainConfig,
    spec: ModelSpec,
    teachers: Models,
    adapters: Adapters | None = None,
    mesh_text: str | None = None,
) -> tuple[Any, TrainConfig]:
    """The engine, and the settings with the precision that it computes in. mesh_text: how JAX
    spreads over all devices; None for one device."""
    with needs("tsm-train", "train" if config.engine == "torch" else "train-jax"):
        if config.engine == "torch":
            from . import engine_torch as library
        else:
            from . import engine_jax as library
    create: Any = library.Engine
    if config.engine == "jax" and mesh_text is not None:
        from . import mesh as meshes

        mesh = meshes.make_mesh(mesh_text)
        if mesh:
            meshes.check(mesh, config, [spec, *(spec for spec, _ in teachers)])
            create = functools.partial(meshes.Engine, mesh)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and library.bf16_is_fast())
    config = dataclasses.replace(config, precision="bf16" if bf16 else "fp32")
    return create(spec, config.dropout, bf16, config.compiled, teachers, adapters), config


def mean_loss(config: TrainConfig, teachers: Models, windows: np.ndarray) -> float:
    """Nats a byte of the mean of the teachers' probabilities."""
    plain = dataclasses.replace(config, compiled=False)
    chances = []
    for spec, values in teachers:
        engine, _ = open_engine(plain, spec, [])
        chances.append(np.exp(-engine.losses(engine.load(values), windows)))
    return float(-np.log(np.mean(chances, axis=0)).mean())


def validation_windows(corpus: Corpus, config: TrainConfig) -> np.ndarray:
    count = (len(corpus.validation) - 1) // config.window
    chosen = np.linspace(0, count - 1, min(config.eval_windows, count)).astype(int)
    starts = chosen * config.window
    windows = [corpus.validation[start : start + config.window + 1] for start in starts]
    return np.stack(windows).astype(np.int64)


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
    engine: Any,
    run: Run,
    schedule: Schedule,
    config: TrainConfig,
    corpus: Corpus,
    original: Corpus | None = None,
) -> tuple[float, float]:
    """One step of `run` in place; its loss, and its gradient's norm before clipping. original: the
    text that is replayed. The last rows are passages to be recalled."""
    fraction = schedule.fraction(run.step, run.memory)
    settings = {
        "step": run.step,
        "muon_learning_rate": config.muon_learning_rate * fraction,
        "adam_learning_rate": config.adam_learning_rate * fraction,
        "weight_decay": config.weight_decay,
        "clip": config.clip,
        "adam_beta1": schedule.adam_beta1,
    }
    replayed = round(config.replay * config.batch) if original else 0
    recalled = max(1, round(config.recall * config.batch)) if config.recall else 0
    parts = ((corpus, config.batch - replayed - recalled), (original, replayed))
    tokens = [
        batch(text.train, config.seed, run.step, rows, config.window, engine.rows(rows))
        for text, rows in parts
        if text and rows
    ]
    more = {}
    if recalled:
        shape = config.seed, run.step, recalled, config.window
        passages, answers = tasks.windows(tasks.practice(corpus.train), *shape)
        of_text = np.ones((config.batch - recalled, config.window), np.float32)
        more = {"counts": np.concatenate([of_text, answers])}
        tokens.append(passages)
    seed = (config.seed * 1_000_003 + run.step) % 2**64
    values = run.weights, run.optimizer, run.average
    *values, loss, norm = engine.step(
        *values,
        np.concatenate(tokens),
        seed,
        settings,
        schedule.decay_at(run.step),
        schedule.toward_average,
        **more,
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


def read_best(path: Path) -> dict[str, Any] | None:
    """The record beside the best weights so far; None if there are none."""
    if not path.exists():
        return None
    try:
        best = json.loads(path.read_bytes())
        if best["step"] >= 0 and math.isfinite(best["validation_nats_per_byte"]):
            return best
    except (ValueError, KeyError, TypeError):
        pass
    raise RunError(f"{path}: not a record of train.py, wanted one, or no file")


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

    def written(self) -> bool:
        return self.path.exists()

    def write(self, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
        write_arrays(self.path, arrays, metadata)

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        return read_arrays(self.path)

    def close(self) -> None:
        pass


def checkpoint_path(out: Path, on_mesh: bool = False) -> Path:
    """A file, or a folder of a run that is, or was, on a mesh. on_mesh: new ones, at least."""
    folder = out / CHECKPOINT_OF_MESH
    return folder if on_mesh or folder.exists() else out / CHECKPOINT


def checkpoint_in(out: Path, on_mesh: bool = False) -> Any:
    """What reads and writes the checkpoints of the run in that folder. As checkpoint_path."""
    path = checkpoint_path(out, on_mesh)
    if path.name == CHECKPOINT:
        return CheckpointFile(path)
    with needs("tsm-train", "train-jax"):
        from .checkpoint_folder import CheckpointFolder
    return CheckpointFolder(path)


def seconds_taken(out: Path) -> float:
    """By the run in that folder, until its last checkpoint."""
    path = checkpoint_path(out)
    if path.name == CHECKPOINT:
        return float(read_metadata(path)["seconds"])
    steps = {int(file.parts[-3]): file for file in path.glob("[0-9]*/metadata/metadata")}
    if not steps:
        raise RunError(f"{path}: no whole checkpoint in it yet, wanted one")
    return float(json.loads(steps[max(steps)].read_bytes())["seconds"])


def read_checkpoint(out: Path) -> Checkpoint | None:
    """Of the run in that folder. Raises RunError for a file that is no checkpoint."""
    checkpoints = checkpoint_in(out)
    path = checkpoints.path
    arrays, metadata = checkpoints.read() if checkpoints.written() else (None, {})
    checkpoints.close()
    if arrays is None:
        return None
    try:
        spec, record = ModelSpec.from_json(metadata["spec"]), json.loads(metadata["record"])
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        for name, array in arrays.items():
            part, name = name.split("/", 1)
            parts[part][name] = array
        config = TrainConfig(**record["config"])
        table = adapter_table(spec, config.lora) if config.lora else weights(spec)
        check_table(table, parts["weights"], str(path))
        check_table(table, parts["average"], str(path))
        memory = json.loads(metadata["memory"])
        run = Run(int(metadata["step"]), memory, **parts)
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
    if record["config"]["lora"] and stored["start_sha256"] != record["start_sha256"]:
        raise RunError(f"{out}: {record['config']['start']} has changed since it was started")
    if stored.get("teachers_sha256") != record.get("teachers_sha256"):
        raise RunError(
            f"{out}: its teachers have changed since it was started; "
            "give the same, or another --out"
        )

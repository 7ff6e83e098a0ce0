"""Trains a model on any file of bytes.

    python training/train.py --data shakespeare --preset shakespeare --out runs/shakespeare

Stop it at any moment (Ctrl-C, kill -9, a power cut); the same command goes on from its last
checkpoint, and its losses are those of a run that was never stopped. In the run's folder:
metrics.jsonl and TensorBoard events, checkpoint.safetensors, and, whenever it has been
evaluated, model.safetensors with the averaged weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_compat.numpy as np_xp
import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tsm.runtime.command import Parser
from tsm.training import model
from tsm.training.checkpoint import load_model, read_arrays, save_model, write_arrays
from tsm.training.data import Corpus, DataError, batch, fresh_windows, open_corpus, sha256
from tsm.training.schedule import SCHEDULES, Memory, Schedule
from tsm.training.spec import PRESETS, ModelSpec, SpecError, parameter_count

Arrays = dict[str, np.ndarray]
Models = list[tuple[ModelSpec, Arrays]]

CHECKPOINT = "checkpoint.safetensors"  # in the run's folder
FREE_TO_CHANGE = ("steps", "decay_fraction", "eval_every", "checkpoint_every")  # on resume


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run besides the bytes of its data."""

    preset: str = "shakespeare"
    start: str = ""  # a model.safetensors to go on from; else random weights
    teachers: str = ""  # model.safetensors, a comma between: their probabilities are learned
    engine: str = "torch"
    schedule: str = "wsd"  # of the rates: training/schedule.py
    steps: int = 3000
    batch: int = 16  # windows
    window: int = 256  # bytes
    muon_rate: float = 0.02
    adam_rate: float = 0.003
    weight_decay: float = 0.4  # per unit of rate, on matrices
    warmup_steps: int = 50
    decay_fraction: float = 0.5  # of `steps`, the last: wsd's rate falls to zero
    clip: float = 1.0  # bound on the gradient's norm
    dropout: float = 0.0
    average_decay: float = 0.995  # of the averaged weights, per step; not of schedule-free
    precision: str = "auto"  # fp32, bf16, or bf16 where it is fast
    compiled: bool = False  # fused kernels: faster, after a minute or two of compilation
    seed: int = 0
    eval_every: int = 100  # steps
    eval_windows: int = 64  # of the validation part, evenly spaced
    checkpoint_every: int = 50  # steps


class RunError(ValueError):
    """A run that cannot start or go on, in one line."""


@dataclass
class Run:
    """What a checkpoint holds: the arrays of one moment, what the schedule has learned, and the
    number of updates made."""

    step: int
    memory: Memory
    weights: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    config = TrainConfig(
        **{f.name: getattr(arguments, f.name) for f in dataclasses.fields(TrainConfig)}
    )
    out = Path(arguments.out)
    try:
        check(config)
        corpus = open_corpus(arguments.data, config.window, arguments.download)
        initial = {} if (out / CHECKPOINT).exists() else initial_weights(config)
        teachers = load_teachers(config)
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / "lock", timeout=0):  # let go by the system, however the process ends
            return _train(config, corpus, initial, teachers, out, Console(stderr=True))
    except Timeout:
        print(f"train: {out}: another training is writing there, wanted one", file=sys.stderr)
    except (DataError, RunError, SpecError) as error:
        print(f"train: {error}", file=sys.stderr)
    except OSError as error:
        print(f"train: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2


def _train(
    config: TrainConfig,
    corpus: Corpus,
    initial: Arrays,
    teachers: Models,
    out: Path,
    console: Console,
) -> int:
    spec = PRESETS[config.preset]
    engine, config = _engine(config, spec, teachers)
    record = {
        "command": " ".join(sys.argv),
        "config": dataclasses.asdict(config),
        "data_sha256": sha256(corpus.path),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "parameters": parameter_count(spec),
    }
    if config.start and initial:
        record["start_sha256"] = sha256(Path(config.start))
    if config.teachers:
        record["teachers_sha256"] = [sha256(Path(path)) for path in config.teachers.split(",")]
    schedule = scheduled(config)
    run, seconds = _restore(out, engine, initial, schedule, record)
    log = Log(out, run.step)
    console.print(
        f"{record['parameters']:,} parameters, {len(corpus.train):,} bytes to learn from, "
        f"step {run.step} of {config.steps}, {config.engine} {config.precision}, {config.schedule}"
    )
    validation = validation_windows(corpus, config)
    stop = _stop_on_interrupt()
    started = time.monotonic() - seconds
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=600) as progress:
        task = progress.add_task("", total=config.steps, completed=run.step)
        try:
            while run.step < config.steps and not stop:
                before = time.monotonic()
                status = schedule.status(run.step, run.memory)
                loss, norm = advance(engine, run, schedule, config, corpus)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    console.print(
                        f"step {run.step}: loss {loss}, gradient norm {norm}: stopped; the last "
                        f"good checkpoint stays in {out}. A lower rate may help."
                    )
                    return 1
                speed = config.batch * config.window / (time.monotonic() - before)
                log.write(
                    "train", run.step, loss=loss, norm=norm, tokens_per_second=speed, **status
                )
                rate = f"rate {status.pop('rate'):.1%} of its peak"
                shown = " ".join([rate, *(f"{name} {value:.3g}" for name, value in status.items())])
                progress.update(
                    task,
                    completed=run.step,
                    description=f"step {run.step} loss {loss:.3f} {shown} {speed:,.0f} tokens/s",
                )
                last = run.step == config.steps
                if run.step % config.eval_every == 0 or last:
                    nats = float(engine.losses(run.average, validation).mean())
                    log.write("validation", run.step, nats_per_byte=nats)
                    record |= {"step": run.step, "hours": (time.monotonic() - started) / 3600}
                    record["validation_nats_per_byte"] = nats
                    average = engine.save(run.average)
                    save_model(out / "model.safetensors", spec, average, record=record)
                    console.print(f"step {run.step}: validation {nats:.4f} nats/byte")
                    console.print(sample(spec, average, 160), markup=False, highlight=False)
                if run.step % config.checkpoint_every == 0 or last or stop:
                    _save(out, engine, run, record, time.monotonic() - started)
        finally:
            log.close()
    if stop:
        console.print(f"stopped at step {run.step}; the same command goes on from {out}")
        return 130
    return 0


def _stop_on_interrupt() -> list[int]:
    """A list that Ctrl-C makes true, so that the step under way is finished and saved; a second
    Ctrl-C interrupts at once."""
    received: list[int] = []

    def handle(number: int, _: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    signal.signal(signal.SIGINT, handle)
    return received


def scheduled(config: TrainConfig) -> Schedule:
    return SCHEDULES[config.schedule](
        config.steps, config.warmup_steps, config.decay_fraction, config.average_decay, config.seed
    )


def initial_weights(config: TrainConfig) -> Arrays:
    wanted = PRESETS[config.preset]
    if not config.start:
        return model.initialise(wanted, config.seed)
    found, weights = load_model(config.start)
    for f in dataclasses.fields(ModelSpec):
        values = getattr(found, f.name), getattr(wanted, f.name)
        if values[0] != values[1]:
            raise RunError(
                f"{config.start}: its {f.name} is {values[0]}, "
                f"preset {config.preset} wants {values[1]}"
            )
    return weights


def load_teachers(config: TrainConfig) -> Models:
    vocabulary, teachers = PRESETS[config.preset].vocabulary, []
    for path in config.teachers.split(",") if config.teachers else []:
        if not path:
            raise RunError(f"--teachers {config.teachers}: an empty name, wanted a comma between")
        teachers.append(load_model(path))
        if (found := teachers[-1][0].vocabulary) != vocabulary:
            raise RunError(
                f"{path}: its vocabulary is {found}, preset {config.preset} wants {vocabulary}"
            )
    return teachers


def fresh(engine: Any, schedule: Schedule, initial: Arrays) -> Run:
    weights, average = engine.load(initial), engine.load(initial)
    memory = schedule.initial_memory()
    return Run(0, memory, weights, engine.optimizer_state(weights), average)


def advance(
    engine: Any, run: Run, schedule: Schedule, config: TrainConfig, corpus: Corpus
) -> tuple[float, float]:
    """One update of `run` in place; its loss, and its gradient's norm before clipping."""
    fraction = schedule.fraction(run.step, run.memory)
    settings = {
        "step": run.step,
        "muon_rate": config.muon_rate * fraction,
        "adam_rate": config.adam_rate * fraction,
        "weight_decay": config.weight_decay,
        "clip": config.clip,
        "adam_beta1": schedule.adam_beta1,
    }
    tokens = batch(corpus.train, config.seed, run.step, config.batch, config.window)
    seed, kept = config.seed * 1_000_003 + run.step, schedule.kept(run.step)
    values = run.weights, run.optimizer, run.average
    *values, loss, norm = engine.step(
        *values, tokens, seed, settings, kept, schedule.toward_average
    )
    run.weights, run.optimizer, run.average = values
    if math.isfinite(loss):
        run.memory = schedule.observe(run.memory, run.step, loss)
    run.step += 1
    return loss, norm


def sample(
    spec: ModelSpec, weights: dict[str, np.ndarray], count: int, prompt: bytes = b"\n"
) -> str:
    """A text of `count` bytes at temperature 0.8, always from the same random numbers."""
    random = np.random.Generator(np.random.Philox(0))
    tokens = np.frombuffer(prompt, np.uint8).astype(np.int64)[None]
    state, text = model.initial_state(np_xp, spec), bytearray()
    for _ in range(count):
        logits, state = model.forward(np_xp, spec, weights, tokens, state)
        noise = random.gumbel(size=spec.vocabulary)  # the argmax of these is a draw
        text.append(int(np.argmax(logits[0, -1] / 0.8 + noise)))
        tokens = np.array([[text[-1]]])
    return text.decode("utf-8", "replace")


class Log:
    """metrics.jsonl, a line an event, and the same numbers for TensorBoard. On resume, what was
    written after the checkpoint is cut off: it is about to be measured again, equal."""

    def __init__(self, out: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        path = out / "metrics.jsonl"
        kept = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                break  # half a line: the process was killed while writing it
        beside = path.with_name(path.name + ".partial")
        beside.write_text("".join(kept))
        os.replace(beside, path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115  closed by close()
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, **values: float) -> None:
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()


def _restore(
    out: Path, engine: Any, initial: Arrays, schedule: Schedule, record: dict[str, Any]
) -> tuple[Run, float]:
    """The run in the folder `out`, or a new one; and the seconds that it has taken so far."""
    path, config = out / CHECKPOINT, record["config"]
    if not path.exists():
        return fresh(engine, schedule, initial), 0.0
    arrays, metadata = read_arrays(path)
    stored = json.loads(metadata["record"])
    record |= {name: stored[name] for name in ("start_sha256",) if name in stored}
    # An option younger than the checkpoint had its default: defaults are what was done before.
    started = {**dataclasses.asdict(TrainConfig()), **stored["config"]}
    for name, value in {**config, "data_sha256": record["data_sha256"]}.items():
        found = stored["data_sha256"] if name == "data_sha256" else started[name]
        if found != value and name not in FREE_TO_CHANGE:
            raise RunError(
                f"{out}: was started with {name} {found!r}, now {value!r}; "
                "give the same, or another --out"
            )
    if stored.get("teachers_sha256") != record.get("teachers_sha256"):
        raise RunError(
            f"{out}: its teachers have changed since it was started; "
            "give the same, or another --out"
        )
    parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "optimizer": {}, "average": {}}
    for name, array in arrays.items():
        part, name = name.split("/", 1)
        parts[part][name] = array
    loaded = {part: engine.load(parts[part]) for part in parts}
    memory = json.loads(metadata.get("memory", "{}"))
    return Run(int(metadata["step"]), memory, **loaded), float(metadata["seconds"])


def _save(out: Path, engine: Any, run: Run, record: dict[str, Any], seconds: float) -> None:
    arrays = {
        f"{part}/{name}": array
        for part in ("weights", "optimizer", "average")
        for name, array in engine.save(getattr(run, part)).items()
    }
    metadata = {"step": str(run.step), "seconds": str(seconds)}
    metadata |= {"memory": json.dumps(run.memory), "record": json.dumps(record)}
    write_arrays(out / CHECKPOINT, arrays, metadata)


def validation_windows(corpus: Corpus, config: TrainConfig) -> np.ndarray:
    windows, _ = fresh_windows(corpus.validation, config.window)
    wanted = min(config.eval_windows, len(windows))
    return windows[np.linspace(0, len(windows) - 1, wanted).astype(int)]


def _engine(config: TrainConfig, spec: ModelSpec, teachers: Models) -> tuple[Any, TrainConfig]:
    if config.engine == "torch":
        from tsm.training import engine_torch as library
    else:
        from tsm.training import engine_jax as library
    bf16 = config.precision == "bf16" or (config.precision == "auto" and library.bf16_is_fast())
    config = dataclasses.replace(config, precision="bf16" if bf16 else "fp32")
    return library.Engine(spec, config.dropout, bf16, config.compiled, teachers), config


def check(config: TrainConfig) -> None:
    for name in ("steps", "batch", "window", "eval_every", "eval_windows", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted at least 1")
    for name in ("muon_rate", "adam_rate", "weight_decay", "warmup_steps", "seed"):
        if not 0 <= getattr(config, name) < math.inf:
            raise RunError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted 0 or more")
    for name in ("dropout", "average_decay", "decay_fraction"):
        if not 0 <= getattr(config, name) < 1:
            raise RunError(f"--{name.replace('_', '-')} {getattr(config, name)}: wanted in [0, 1)")
    if not config.clip > 0:
        raise RunError(f"--clip {config.clip}: wanted more than 0")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    choices = {
        "preset": sorted(PRESETS),
        "schedule": list(SCHEDULES),
        "engine": ["torch", "jax"],
        "precision": ["auto", "fp32", "bf16"],
    }
    helps = {
        "start": "a model.safetensors to go on from, such as the shipped one (default: none)",
        "teachers": "several model.safetensors, a comma between: their mean probabilities are "
        "learned in place of the text's bytes (default: none)",
    }
    parser = Parser("train", __doc__).whole()
    parser.add_argument(
        "--data", default="shakespeare", help="a file, or `shakespeare` (default: %(default)s)"
    )
    parser.add_argument("--download", action="store_true", help="fetch the corpus if not here")
    parser.add_argument("--out", default="runs/shakespeare", help="default: %(default)s")
    for f in dataclasses.fields(TrainConfig):
        option, kind = "--" + f.name.replace("_", "-"), type(f.default)
        if kind is bool:
            parser.add_argument(option, action="store_true", help="default: no")
        else:
            parser.add_argument(
                option,
                type=kind,
                default=f.default,
                choices=choices.get(f.name),
                help=helps.get(f.name, "default: %(default)s"),
            )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""Trains a model on any file of bytes.

    python training/train.py --data my.txt --out runs/mine
    python training/train.py --data my.txt --out runs/mine --start models/shakespeare.safetensors

Stop it at any moment (Ctrl-C, kill -9, a power cut); the same command goes on from its last
checkpoint, and its losses are those of a run that was never stopped. In the run's folder:
model.safetensors, the averaged weights of the best evaluation so far, and model.json, how they
were made; metrics.jsonl and TensorBoard events; checkpoint.safetensors.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

# Before NumPy is imported, which draws the samples: threads that spin cost them nine tenths.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from ..runtime.command import Parser, Signalled, another_command, needs, run_command
from ..runtime.text import printable

with needs("tsm-train", "train"):
    import array_api_compat.numpy as np_xp
    import numpy as np
    from filelock import FileLock, Timeout
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from . import config as settings
    from . import model
    from . import processes as hosts
    from .checkpoint import load_model, save_model
    from .config import RunError, TrainConfig
    from .data import Corpus, DataError, fresh_windows, open_corpus, sha256
    from .interrupt import Interrupt
    from .metrics import Log, NoLog
    from .run import (
        PARTS,
        Checkpoint,
        advance,
        check_unchanged,
        checkpoint_in,
        fresh,
        read_checkpoint,
        scheduled,
        snapshot,
    )
    from .spec import ModelSpec, SpecError, parameter_count
    from .threads import MOST_THREADS, default_threads, prepare_threads

Arrays = dict[str, np.ndarray]
Models = list[tuple[ModelSpec, Arrays]]

MODEL, RECORD, LOCK = "model.safetensors", "model.json", "lock"  # in the run's folder
SHIPPED = "models/shakespeare.safetensors"  # in a clone of the project
ARTIFACT = "model-int8.onnx"  # beside them, as the exporter names it
SAMPLE_BYTES = 160
COMPILING = {"torch": "two minutes", "jax": "half a minute"}
SMALL_TEXT = 200_000  # bytes, below which trained weights are the better start


class Diverged(Exception):
    """A loss, a gradient or an evaluation that is not finite."""


def main(argv: list[str] | None = None) -> int:
    code = run_command("tsm-train", lambda: _start(_parse(argv)), DataError, RunError, SpecError)
    return hosts.leave(code)


def _start(arguments: argparse.Namespace) -> None:
    interrupt = Interrupt("tsm-train")
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    out = Path(arguments.out)
    settings.check(TrainConfig(**given))
    window = given.get("window", TrainConfig.window)
    if arguments.mesh or arguments.coordinator:  # before JAX looks for its devices
        arguments.threads = arguments.threads or default_threads()
        prepare_threads(arguments.threads)
    processes = hosts.join(arguments)
    with processes.together():
        _prepare(given, window, out, processes, arguments, interrupt)


def _prepare(
    given: dict[str, Any],
    window: int,
    out: Path,
    processes: hosts.Processes,
    arguments: argparse.Namespace,
    interrupt: Interrupt,
) -> None:
    with processes.in_turn():
        corpus = open_corpus(arguments.data, window, arguments.download, arguments.column, out)
    stored = read_checkpoint(out)
    if stored:
        config, spec = TrainConfig(**{**stored.record["config"], **given}), stored.spec
        initial: Arrays = {}
    else:
        config = settings.for_text(len(corpus.train) + len(corpus.validation), given)
        spec, initial = first_model(config)
    teachers = load_teachers(config, spec)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)  # let go by the system, however the process ends
    try:
        with lock if processes.first else contextlib.nullcontext():
            for path in out.glob("*.partial") if processes.first else ():
                path.unlink()  # of a run that was killed while it wrote
            run = config, corpus, spec, initial, stored, teachers, out
            _train(*run, processes, arguments, interrupt)
    except Timeout:
        raise RunError(f"{out}: another training is writing there, wanted one") from None


def _train(
    config: TrainConfig,
    corpus: Corpus,
    spec: ModelSpec,
    initial: Arrays,
    stored: Checkpoint | None,
    teachers: Models,
    out: Path,
    processes: hosts.Processes,
    arguments: argparse.Namespace,
    interrupt: Interrupt,
) -> None:
    """initial: the weights of a new run. stored: the checkpoint that a run goes on from."""
    console = Console(stderr=True, quiet=not processes.first)
    say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
    threads = arguments.threads or default_threads(spec)
    prepare_threads(threads)
    engine, config, mesh = _engine(config, spec, teachers, arguments.mesh)
    checkpoints = checkpoint_in(out, on_mesh=mesh is not None)
    record = {
        "command": " ".join(sys.argv),
        "config": dataclasses.asdict(config),
        "data_sha256": sha256(corpus.path),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": threads,
        "parameters": parameter_count(spec),
    }
    if config.teachers:
        record["teachers_sha256"] = [sha256(Path(path)) for path in config.teachers.split(",")]
    schedule = scheduled(config)
    if stored:
        check_unchanged(out, stored.record, record)
        record |= {n: stored.record[n] for n in ("start_sha256",) if n in stored.record}
        parts = {part: engine.load(getattr(stored.run, part)) for part in PARTS}
        run, best = dataclasses.replace(stored.run, **parts), read_best(out / RECORD)
        origin = f", a run that started from {config.start}" if config.start else ""
        say(f"going on from {checkpoints.path}{origin}")
        if run.step >= config.steps:
            say(f"its {run.step} steps are done; a larger --steps goes on")
    else:
        if config.start:
            record["start_sha256"] = sha256(Path(config.start))
        run, best = fresh(engine, schedule, initial), None
    if corpus.summary:
        say(corpus.summary)
    say(
        f"{record['parameters']:,} parameters, {len(corpus.train):,} bytes to learn from, "
        f"step {run.step} of {config.steps}, {config.engine} {config.precision}, threads {threads}"
    )
    if not stored and not config.start and len(corpus.train) < SMALL_TEXT:
        say(
            "a text this small is learned better by a model that can write already: "
            f"--start {SHIPPED}, without --preset and with another --out"
        )
    if config.compiled or config.engine == "jax":
        say(f"compiling, about {COMPILING[config.engine]}; Ctrl-C ends it")
    validation = validation_windows(corpus, config)
    log = Log(out, run.step if stored else -1) if processes.first else NoLog()
    started = time.monotonic() - (stored.seconds if stored else 0)

    def evaluate() -> dict[str, Any]:
        """Writes the averaged weights if they are the best so far. The record of the best."""
        nats = float(engine.losses(run.average, validation).mean())
        if not math.isfinite(nats):
            raise Diverged(f"validation {nats}")
        log.write("validation", run.step, nats_per_byte=nats)
        if best and nats >= best["validation_nats_per_byte"]:
            found = f"{best['validation_nats_per_byte']:.4f} at step {best['step']}"
            say(f"step {run.step}: validation {nats:.4f} nats/byte, the best is {found}")
            return best
        hours = (time.monotonic() - started) / 3600
        result = {"step": run.step, "hours": hours, "validation_nats_per_byte": nats}
        average = engine.save(run.average)
        if not processes.first:
            return record | result
        save_model(out / MODEL, spec, average, record=record | result)
        say(f"step {run.step}: validation {nats:.4f} nats/byte")
        text = sample(spec, average, SAMPLE_BYTES)
        say(printable(text) if console.is_terminal else text)
        return record | result

    def overfits() -> bool:
        reach = config.patience * config.eval_every
        return bool(reach and best and run.step - best["step"] >= reach)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, speed_estimate_period=600, refresh_per_second=2)
    task = progress.add_task("", total=config.steps, completed=run.step)
    saved = run.step
    try:
        if config.start and not stored:
            best = evaluate()  # so that no model is written that is worse
        while True:
            step = run.step
            signalled = processes.any(bool(interrupt.received))
            ending = signalled or overfits() or step >= config.steps
            if ending and step == saved:
                break
            checkpoint = None
            if step > saved and (ending or step % config.checkpoint_every == 0):
                checkpoint = snapshot(engine, run, spec, record, time.monotonic() - started)
            status, before = schedule.status(run.step, run.memory), time.monotonic()
            loss, norm = advance(engine, run, schedule, config, corpus)
            speed = config.batch * config.window / (time.monotonic() - before)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(f"loss {loss}, gradient norm {norm}")
            if checkpoint:  # not before a step from it has shown that it is good
                checkpoints.write(*checkpoint)
                saved = step
            if ending:
                run.step = step  # the step after it was made to show that, and is not kept
                break
            interrupt.finish_steps()
            progress.start()
            log.write("train", run.step, loss=loss, norm=norm, tokens_per_second=speed, **status)
            shown = [f"{name} {value:.3g}" for name, value in status.items()]
            description = f"step {run.step} loss {loss:.3f} {' '.join(shown)} {speed:,.0f} tokens/s"
            progress.update(task, completed=run.step, description=description)
            if run.step % config.eval_every == 0 or run.step == config.steps:
                best = evaluate()
        if not (best or signalled):  # someone has taken the file away
            best = evaluate()
    except Diverged as error:
        progress.stop()
        kept = [f"the model of step {best['step']}"] if best else []
        kept += [f"the checkpoint of step {saved}"] if checkpoints.path.exists() else []
        stay = f"; {' and '.join(kept)} stay in {out}" if kept else ""
        say(f"step {run.step}: {error}: stopped{stay}. A lower learning rate may help.")
        raise SystemExit(1) from None
    finally:
        progress.stop()
        log.close()
    checkpoints.close()
    if signalled:
        say(f"stopped at step {run.step}; the same command goes on from {out}")
        raise Signalled(interrupt.received or signal.SIGTERM)
    assert best
    if overfits() and run.step < config.steps:
        say(
            f"validation has not fallen since step {best['step']}: stopped at step {run.step} of "
            f"{config.steps}. With --steps {best['step']} the learning rate would have fallen by "
            "then, for better weights; --patience 0 never stops."
        )
    _say_what_is_written(say, out, config, best, checkpoints.path, arguments)


def _say_what_is_written(
    say: Any,
    out: Path,
    config: TrainConfig,
    best: dict[str, Any],
    checkpoint: Path,
    arguments: argparse.Namespace,
) -> None:
    """The files, and the commands to go on with."""
    nats, step = best["validation_nats_per_byte"], best["step"]
    what = {
        MODEL: f"weights of step {step}, validation {nats:.4f} nats/byte",
        RECORD: "how they were made",
        checkpoint.name: "from which the same command goes on, as with more --steps",
    }
    say("written:")
    for name, text in what.items():
        size = sum(file.stat().st_size for file in [out / name, *(out / name).rglob("*")])
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"
        say(f"  {out / name}, {shown}: {text}")
    say("next:")
    quoted = shlex.quote(str(out / MODEL))
    window = "" if config.window == TrainConfig.window else f" --window {config.window}"
    column = [] if arguments.column is None else ["--column", arguments.column]
    evaluated = f"{quoted} --data {shlex.join([*arguments.data, *column])}{window}"
    say(f"  {another_command('training/evaluate')} {evaluated}")
    say(f"  {another_command('export/to_onnx')} {quoted}")
    say(f"  {another_command('runtime/generate')} {shlex.quote(str(out / ARTIFACT))}")


def first_model(config: TrainConfig) -> tuple[ModelSpec, Arrays]:
    """The shape and the weights that a new run starts with."""
    if not config.start:
        spec = settings.spec_of(config)
        return spec, model.initialise(spec, config.seed)
    spec, weights = load_model(config.start)
    return settings.spec_of(config, spec), weights


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


def validation_windows(corpus: Corpus, config: TrainConfig) -> np.ndarray:
    windows, _ = fresh_windows(corpus.validation, config.window)
    wanted = min(config.eval_windows, len(windows))
    return windows[np.linspace(0, len(windows) - 1, wanted).astype(int)]


def _engine(
    config: TrainConfig, spec: ModelSpec, teachers: Models, mesh_text: str
) -> tuple[Any, TrainConfig, Any]:
    """The engine, the settings with its precision, and its mesh, None for one device."""
    with needs("tsm-train", "train" if config.engine == "torch" else "train-jax"):
        if config.engine == "torch":
            from . import engine_torch as library
        else:
            from . import engine_jax as library
    mesh, create = None, library.Engine
    if config.engine == "jax":
        from . import mesh as meshes

        mesh = meshes.make_mesh(mesh_text)
        if mesh:
            meshes.check(mesh, config, [spec, *(spec for spec, _ in teachers)])
            create = functools.partial(meshes.Engine, mesh)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and library.bf16_is_fast())
    config = dataclasses.replace(config, precision="bf16" if bf16 else "fp32")
    return create(spec, config.dropout, bf16, config.compiled, teachers), config, mesh


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("tsm-train", __doc__)
    parser.add_argument(
        "--data",
        nargs="+",
        default=["shakespeare"],
        metavar="PATH",
        help="files and folders to learn from, of which 10%% are held out: of one file its end, of "
        "several whole documents; .gz and .zst are unpacked. Or `shakespeare`, Tiny Shakespeare",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="of .jsonl, .csv, .tsv and .parquet, whose values are the documents (default: such "
        "files are text; of .parquet, text)",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch Tiny Shakespeare (1.1 MB) if it is not here"
    )
    parser.add_argument(
        "--out", help="folder of the run, where it also goes on (default: runs/NAME, as of --data)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the processor (default: what is fastest for the shape)",
    )
    parser.add_argument(
        "--mesh",
        default="",
        metavar="AXIS=N,…",
        help="how --engine jax spreads over its devices: data, fsdp and sequence, as in "
        "fsdp=4,sequence=2; data takes what is left (default: all on data)",
    )
    hosts.add_arguments(parser)
    settings.add_arguments(parser)
    arguments = parser.parse_args(argv)
    several = arguments.mesh or arguments.coordinator
    if several and arguments.engine != "jax":
        parser.error(f"{several}: several devices want --engine jax")
    if arguments.out is None:
        arguments.out = f"runs/{Path(arguments.data[0]).resolve().stem}"
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        parser.error(f"--threads {arguments.threads}: wanted 1 to {MOST_THREADS}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

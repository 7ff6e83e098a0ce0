"""Trains a model on any file of bytes.

    python training/train.py --data my.txt --budget 30m
    python training/train.py --data my.txt --start models/shakespeare.safetensors --out runs/mine

Stop it at any moment (Ctrl-C, kill -9, a power cut); the same command goes on from its last
checkpoint, and its losses are those of a run that was never stopped. In the run's folder:
model.safetensors, the averaged weights of the best evaluation so far, and model.json, how they
were made; metrics.jsonl and TensorBoard events; checkpoint.safetensors; at the end report.html and
an artifact for a device.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()  # what is imported below counts as part of the run

import argparse
import contextlib
import dataclasses
import math
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

# Before NumPy is imported, which draws the samples: threads that spin cost them nine tenths.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from ..runtime.command import Parser, Signalled, needs, run_command

with needs("tsm-train", "train"):
    from filelock import FileLock, Timeout

    from . import config as settings
    from . import processes as hosts
    from .budget import Plan, choose
    from .checkpoint import save_model
    from .config import RunError, TrainConfig
    from .corpora import sha256
    from .data import Corpus, DataError, open_corpus
    from .ending import leave
    from .interrupt import Interrupt
    from .metrics import TRACKERS, Log, NoLog
    from .run import (
        MODEL,
        PARTS,
        RECORD,
        Arrays,
        Checkpoint,
        Models,
        advance,
        check_unchanged,
        checkpoint_in,
        first_model,
        fresh,
        load_adapters,
        load_teachers,
        mean_loss,
        open_engine,
        original_corpus,
        read_best,
        read_checkpoint,
        scheduled,
        snapshot,
        validation_windows,
    )
    from .sample import sample
    from .spec import ModelSpec, SpecError, parameter_count
    from .threads import MOST_THREADS, default_threads, prepare_threads
    from .view import View, duration

KEPT = "start_sha256", "original_nats_at_start"  # of the record of a run that goes on
LOCK = "lock"  # in the run's folder
SHIPPED = "models/shakespeare.safetensors"  # in a clone of the project
COMPILING = {"torch": "two minutes", "jax": "half a minute"}
APART = "budget", "ensemble", "lora", "recall", "replay"  # of one device
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
    settings.check(TrainConfig(**given))
    if arguments.mesh or arguments.coordinator:  # before JAX looks for its devices
        arguments.threads = arguments.threads or default_threads()
        prepare_threads(arguments.threads)
    processes = hosts.join(arguments)
    with processes.together():
        _runs(arguments, given, processes, interrupt)


def _runs(
    arguments: argparse.Namespace,
    given: dict[str, Any],
    processes: hosts.Processes,
    interrupt: Interrupt,
) -> None:
    """The run of the command, and before it those of its teachers."""
    out, count = Path(arguments.out), arguments.ensemble
    window = given.get("window", TrainConfig.window)
    with processes.in_turn():
        corpus = open_corpus(arguments.data, window, arguments.download, arguments.column, out)
    began, folders = STARTED, [out / f"teacher-{number}" for number in range(1, count + 1)]
    if folders:
        if given.get("budget"):  # as much for each
            given["budget"] = f"{settings.seconds(given['budget']) / (count + 1):.0f}s"
        for number, folder in enumerate(folders, 1):
            print(f"teacher {number} of {count}", file=sys.stderr)
            seeded = {**given, "seed": given.get("seed", TrainConfig.seed) + number}
            _run(arguments, seeded, corpus, folder, began, processes, interrupt)
            began = time.monotonic()
        print(f"the student of {count} teachers", file=sys.stderr)
        given["teachers"] = ",".join(str(folder / MODEL) for folder in folders)
    _run(arguments, given, corpus, out, began, processes, interrupt)


def _run(
    arguments: argparse.Namespace,
    given: dict[str, Any],
    corpus: Corpus,
    out: Path,
    began: float,
    processes: hosts.Processes,
    interrupt: Interrupt,
) -> None:
    """One run in its folder, a new one or one that goes on. began: by time.monotonic()."""
    stored = read_checkpoint(out)
    plan, initial = None, {}
    if stored:
        plan = Plan(**stored.record["plan"]) if stored.record.get("plan") else None
        if plan and "budget" in given:  # which found the number of steps
            given = {**given, "steps": stored.record["config"]["steps"]}
        config, spec = TrainConfig(**{**stored.record["config"], **given}), stored.spec
        began = time.monotonic() - stored.seconds
    else:
        config = settings.for_text(len(corpus.train) + len(corpus.validation), given)
        spec, initial = first_model(config)
    teachers = load_teachers(config, spec)
    threads = arguments.threads or (plan.threads if plan else default_threads(spec))
    prepare_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK, timeout=0)  # let go by the system, however the process ends
    try:
        with lock if processes.first else contextlib.nullcontext():
            for path in out.glob("*.partial") if processes.first else ():
                path.unlink()  # of a run that was killed while it wrote
            if config.budget and not stored:
                print("measuring how fast this machine trains", file=sys.stderr)
                config, plan = choose(
                    corpus, given, teachers, arguments.threads, began, not arguments.no_export
                )
                spec, initial = first_model(config)
                threads = plan.threads
            job = Job(config, spec, initial, stored, teachers, plan, threads, out, began)
            _train(job, corpus, arguments, processes, interrupt)
    except Timeout:
        raise RunError(f"{out}: another training is writing there, wanted one") from None


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained."""

    config: TrainConfig
    spec: ModelSpec
    initial: Arrays  # of a new run
    stored: Checkpoint | None  # that it goes on from
    teachers: Models
    plan: Plan | None
    threads: int
    out: Path
    began: float


def _train(
    job: Job,
    corpus: Corpus,
    arguments: argparse.Namespace,
    processes: hosts.Processes,
    interrupt: Interrupt,
) -> None:
    config, spec, stored, out = job.config, job.spec, job.stored, job.out
    adapters = load_adapters(config, spec)
    mesh_text = arguments.mesh
    if config.budget or config.lora or config.recall or config.replay:
        if arguments.mesh or arguments.coordinator:
            raise RunError(
                f"{out}: a run with --budget, --lora, --recall or --replay, wanted one device"
            )
        mesh_text = None
    engine, config = open_engine(config, spec, job.teachers, adapters, mesh_text)
    engine.use_threads(job.threads)
    checkpoints = checkpoint_in(out, engine.on_mesh)
    record = {
        "command": " ".join(sys.argv),
        "config": dataclasses.asdict(config),
        "data": {
            "path": str(corpus.path.resolve()),
            "train_bytes": len(corpus.train),
            "validation_bytes": len(corpus.validation),
        },
        "data_sha256": sha256(corpus.path),
        "documents": corpus.summary,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": job.threads,
        "parameters": parameter_count(spec),
        "plan": dataclasses.asdict(job.plan) if job.plan else None,
    }
    if config.teachers:
        record["teachers_sha256"] = [sha256(Path(path)) for path in config.teachers.split(",")]
    if config.lora or (config.start and not stored):
        record["start_sha256"] = sha256(Path(config.start))
    measured = not stored or "original_nats_at_start" in stored.record
    original = original_corpus(config) if config.start and measured else None
    if config.replay and not original:
        raise RunError(f"--replay {config.replay}: the text of {config.start} is not at hand")
    schedule = scheduled(config)

    def loss_on(text: Corpus) -> float:
        nats = float(engine.losses(run.average, validation_windows(text, config)).mean())
        if not math.isfinite(nats):
            raise Diverged(f"validation {nats}")
        return nats

    view = View(config.steps, silent=not processes.first)
    say = view.say
    if stored:
        check_unchanged(out, stored.record, record)
        record |= {n: stored.record[n] for n in KEPT if n in stored.record}
        parts = {part: engine.load(getattr(stored.run, part)) for part in PARTS}
        run, best = dataclasses.replace(stored.run, **parts), read_best(out / RECORD)
        origin = f", a run that started from {config.start}" if config.start else ""
        say(f"going on from {checkpoints.path}{origin}")
        if run.step >= config.steps:
            say(f"its {run.step} steps are done; a larger --steps goes on")
    else:
        run, best = fresh(engine, schedule, job.initial), None
        if original:
            record["original_nats_at_start"] = loss_on(original)
    if corpus.summary:
        say(corpus.summary)
    say(
        f"{record['parameters']:,} parameters, {len(corpus.train):,} bytes to learn from, "
        f"step {run.step} of {config.steps}, {config.engine} {config.precision}, "
        f"threads {job.threads}"
    )
    if not stored and not config.start and len(corpus.train) < SMALL_TEXT:
        say(
            "a text this small is learned better by a model that can write already: "
            f"--start {SHIPPED}, without --preset and with another --out"
        )
    if job.plan:
        say(job.plan.shown(config, len(corpus.train)))
    if config.compiled or config.engine == "jax":
        say(f"compiling, about {COMPILING[config.engine]}; Ctrl-C ends it")
    if job.teachers:
        floor = mean_loss(config, job.teachers, validation_windows(corpus, config))
        say(f"the mean of the teachers, the floor of this student: {floor:.4f} nats/byte")
    kept_until = run.step if stored else -1
    log = Log(out, kept_until, record, arguments.log) if processes.first else NoLog()

    def evaluate() -> dict[str, Any]:
        """Writes the averaged weights if they are the best so far. The record of the best."""
        nats = loss_on(corpus)
        if best and nats >= best["validation_nats_per_byte"]:
            log.write("validation", run.step, nats_per_byte=nats)
            found = f"{best['validation_nats_per_byte']:.4f} at step {best['step']}"
            view.validation(run.step, nats, f", the best is {found}")
            return best
        hours = (time.monotonic() - job.began) / 3600
        result = {"step": run.step, "hours": hours, "validation_nats_per_byte": nats}
        if original:
            result["original_nats_per_byte"] = loss_on(original)
            log.write("original", run.step, nats_per_byte=result["original_nats_per_byte"])
        average = engine.save(engine.whole(run.average))
        if not processes.first:
            return record | result
        save_model(out / MODEL, spec, average, record=record | result)
        text = sample(spec, average, settings.SAMPLE_BYTES)
        log.write("validation", run.step, nats_per_byte=nats, sample=text)
        view.validation(run.step, nats, sample=text)
        return record | result

    def overfits() -> bool:
        reach = config.patience * config.eval_every
        return bool(reach and best and run.step - best["step"] >= reach)

    saved = run.step
    try:
        if config.start and not stored:
            best = evaluate()  # so that no model is written that is worse
        while True:
            step = run.step
            signalled = processes.any(bool(interrupt.received))
            ending_now = signalled or overfits() or step >= config.steps
            if ending_now and step == saved:
                break
            checkpoint = None
            if step > saved and (ending_now or step % config.checkpoint_every == 0):
                checkpoint = snapshot(engine, run, spec, record, time.monotonic() - job.began)
            status, before = schedule.status(run.step, run.memory), time.monotonic()
            loss, norm = advance(engine, run, schedule, config, corpus, original)
            speed = config.batch * config.window / (time.monotonic() - before)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(f"loss {loss}, gradient norm {norm}")
            if checkpoint:  # not before a step from it has shown that it is good
                checkpoints.write(*checkpoint)
                saved = step
            if ending_now:
                run.step = step  # the step after it was made to show that, and is not kept
                break
            interrupt.finish_steps()
            view.start()
            log.write("train", run.step, loss=loss, norm=norm, tokens_per_second=speed, **status)
            view.step(run.step, loss, speed, status, engine, record["parameters"])
            if run.step % config.eval_every == 0 or run.step == config.steps:
                best = evaluate()
        if not (best or signalled):  # someone has taken the file away
            best = evaluate()
    except Diverged as error:
        view.stop()
        kept = [f"the model of step {best['step']}"] if best else []
        kept += [f"the checkpoint of step {saved}"] if checkpoints.written() else []
        stay = f"; {' and '.join(kept)} stay in {out}" if kept else ""
        say(f"step {run.step}: {error}: stopped{stay}. A lower learning rate may help.")
        raise SystemExit(1) from None
    finally:
        view.stop()
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
    if original:
        before, after = record["original_nats_at_start"], best["original_nats_per_byte"]
        say(f"on the text that it came from: {after:.4f} nats/byte, {before:.4f} before")
    elif config.start:
        say("the text that it came from is not at hand: what it has forgotten is not measured")
    if processes.first and out == Path(arguments.out):  # no teacher
        interrupt.end_at_once(f"interrupted; {out / MODEL} is written, the same command goes on")
        column = [] if arguments.column is None else ["--column", arguments.column]
        leave(view, out, config, best, [*arguments.data, *column], not arguments.no_export)
    if job.plan:
        say(f"took {duration(time.monotonic() - job.began)}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("tsm-train", __doc__)
    parser.add_argument(
        "--data",
        nargs="+",
        default=["shakespeare"],
        metavar="PATH",
        help="files and folders to learn from, of which 10%% are held out: of one file its end, of "
        "several whole documents; .gz and .zst are unpacked. Or `shakespeare` or `enwik8`",
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="of .jsonl, .csv, .tsv and .parquet, whose values are the documents (default: such "
        "files are text; of .parquet, text)",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch a corpus known by name if it is not here"
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
        "--ensemble",
        type=int,
        default=0,
        metavar="K",
        help="train K models, with the next seeds, and then the model, which learns their mean",
    )
    parser.add_argument(
        "--log", nargs="+", default=[], choices=sorted(TRACKERS), help="where else to log to"
    )
    parser.add_argument(
        "--no-export", action="store_true", help="write no artifact at the end of the run"
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
    apart = [f"--{name}" for name in APART if getattr(arguments, name)]
    if several and apart:
        parser.error(f"found {several} and {apart[0]}, wanted one of them")
    if arguments.out is None:
        arguments.out = f"runs/{Path(arguments.data[0]).resolve().stem}"
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        parser.error(f"--threads {arguments.threads}: wanted 1 to {MOST_THREADS}")
    if arguments.ensemble < 0 or (arguments.ensemble and arguments.teachers):
        parser.error(f"--ensemble {arguments.ensemble}: wanted 1 or more, and no --teachers")
    return arguments


if __name__ == "__main__":
    sys.exit(main())

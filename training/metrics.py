"""The log of a run: metrics.jsonl, a line an event, and the same numbers for TensorBoard."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.files import naming, written
from .config import RunError


class Log:
    """On resume, what was written after the checkpoint is cut off: it is about to be measured
    again, equal."""

    def __init__(
        self, out: Path, step: int, record: dict[str, Any], trackers: Sequence[str] = ()
    ) -> None:
        """step: that of the checkpoint, or -1 for a new run. record: of the run, for the trackers,
        names of TRACKERS. Raises RunError."""
        # Not at the top: it imports PyTorch, for which the number of threads is to be set before.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
            SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboardX.summary import scalar

        self.trackers = [_opened(name, out, record) for name in trackers]
        self.event, self.scalar = Event, scalar
        self.path = out / "metrics.jsonl"
        lines = _lines_until(self.path, step)
        with written(self.path) as file:
            file.writelines(lines)
        self.file = open(self.path, "a", buffering=1)  # noqa: SIM115  closed by close()
        board = out / "tensorboard"
        board.mkdir(exist_ok=True)
        # Not its SummaryWriter: that one writes in a thread, where a full disk is a traceback.
        self.board = EventsWriter(str(board / "events"))
        start = SessionLog(status=SessionLog.START)
        self.board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, kind: str, step: int, **values: float | str) -> None:
        with naming(str(self.path)):
            line = {"kind": kind, "step": step, **values}
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            numbers = {f"{kind}/{n}": v for n, v in values.items() if not isinstance(v, str)}
            for track in self.trackers:
                track(numbers, step=step)
            for name, value in numbers.items():
                summary = self.scalar(name, value)
                event = self.event(wall_time=time.time(), step=step, summary=summary)
                self.board.write_event(event)
            if kind == "validation":
                self.board.flush()

    def close(self) -> None:
        self.file.close()
        self.board.close()


class NoLog:
    """Of a process that does not write."""

    def write(self, *_: object, **__: object) -> None:
        pass

    def close(self) -> None:
        pass


def _wandb(package: Any, out: Path, record: dict[str, Any]) -> Callable[..., Any]:
    return package.init(project="tsm", name=out.name, dir=out, config=record).log


def _mlflow(package: Any, out: Path, record: dict[str, Any]) -> Callable[..., Any]:
    package.set_experiment("tsm")
    package.start_run(run_name=out.name)  # which ends with the process
    package.log_params(record["config"])
    return package.log_metrics


TRACKERS = {"wandb": _wandb, "mlflow": _mlflow}


def _opened(name: str, out: Path, record: dict[str, Any]) -> Callable[..., Any]:
    try:
        return TRACKERS[name](importlib.import_module(name), out, record)
    except Exception as error:  # of a package whose errors are its own
        reason = str(error).partition("\n")[0]
        raise RunError(f"--log {name}: {reason}") from None


def _lines_until(path: Path, step: int) -> list[bytes]:
    """The whole lines up to this step. A last line without its end was cut off by a kill."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            if json.loads(line)["step"] <= step:
                found.append(line)
        except (ValueError, KeyError, TypeError):
            raise RunError(
                f"{path}: line {number} is {line[:60]!r}, wanted one that train.py wrote"
            ) from None
    return found

"""A model of one's own notes: the project's trainer and exporter, run over a folder of them."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tsm.runtime.command import CommandError
from tsm.runtime.files import written

SUFFIXES = (".txt", ".md", ".markdown", ".org", ".rst")
LEAST_BYTES = 10_000
START = "models/shakespeare.safetensors"  # in the clone that the project is installed from
MODEL = "model-int8.onnx"


def gathered(folder: Path) -> tuple[bytes, int]:
    """All notes in a folder and those in it, the oldest first, an empty line between two; and how
    many they are. What is hidden or no UTF-8 is passed over. Raises CommandError."""
    if not folder.is_dir():
        raise CommandError(f"{folder}: no folder, wanted one of notes")
    paths = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    notes = []
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path)):
        data = path.read_bytes().replace(b"\r\n", b"\n").strip()
        try:
            data.decode()
        except UnicodeDecodeError:
            print(f"passed over, not UTF-8: {path}", file=sys.stderr)
            continue
        if data:
            notes.append(data + b"\n")
    text = b"\n".join(notes)
    if len(text) < LEAST_BYTES:
        kinds = ", ".join(SUFFIXES)
        raise CommandError(
            f"{folder}: {len(text):,} bytes in {len(notes)} notes ({kinds}), "
            f"wanted {LEAST_BYTES:,} or more"
        )
    return text, len(notes)


def learn(
    folder: Path, out: Path, start: str, options: list[str], write: Callable[[str], None]
) -> Path:
    """Trains on the notes in `folder` from the weights `start`, "" for the shipped ones, with more
    `options` of tsm-train, and says by `write` what it does; returns the model's path, in `out`.
    Raises CommandError."""
    training = importlib.util.find_spec("tsm.training")
    if not (training and training.submodule_search_locations):
        raise CommandError(
            "the trainer is not installed, wanted: pip install -e '.[train,export-onnx]' "
            "in a clone of the project"
        )
    start = start or str(Path(training.submodule_search_locations[0]).resolve().parent / START)
    if not Path(start).is_file():
        raise CommandError(f"{start}: no such file, wanted --start with a model.safetensors")
    text, count = gathered(folder)
    run = out / "runs" / hashlib.sha256(text).hexdigest()[:12]  # the same notes: it goes on there
    run.mkdir(parents=True, exist_ok=True)
    with written(run / "notes.txt") as file:
        file.write(text)
    write(f"{count} notes, {len(text):,} bytes, in {run / 'notes.txt'}\n")
    data = ["--data", str(run / "notes.txt"), "--start", start, "--out", str(run)]
    _run(write, "tsm.training.train", *data, *options)
    unfinished = run / MODEL
    _run(write, "tsm.export.to_onnx", str(run / "model.safetensors"), "--out", str(unfinished))
    model = out / MODEL
    unfinished.replace(model)
    return model


def _run(write: Callable[[str], None], module: str, *arguments: str) -> None:
    """A command of the project, which is shown first. Raises CommandError where it fails."""
    write(f"\n$ python -m {module} {shlex.join(arguments)}\n")
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if done.returncode:
        raise CommandError(f"{module}: ended with {done.returncode}, wanted 0; nothing is replaced")

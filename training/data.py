"""A corpus as bytes: found, checked, memory-mapped, split 90/10, and drawn in batches.

Any file will do, text or binary: a token is a byte. `shakespeare` names Tiny Shakespeare, looked
for in $TSM_DATA, then in the user's cache; `--download` of train.py fetches it there.
"""

from __future__ import annotations

import functools
import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer
from rich.progress import Progress

CORPUS_FILE = "tinyshakespeare.txt"
CORPUS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CORPUS_BYTES = 1_115_394
CORPUS_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


class DataError(ValueError):
    """A corpus that cannot be used: found and wanted, in one line."""


@dataclass(frozen=True)
class Corpus:
    path: Path
    train: Integer[np.ndarray, " train"]  # the first 90%
    validation: Integer[np.ndarray, " validation"]  # the last 10%; no byte is in both


def open_corpus(name: str | Path, window: int, download: bool = False) -> Corpus:
    """The corpus at a path, or `shakespeare`; both its parts hold at least one window + 1 bytes."""
    path = _shakespeare(download) if str(name) == "shakespeare" else Path(name)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {found}, wanted a file to learn from")
    size = path.stat().st_size
    split = size * 9 // 10
    if size - split < window + 1:
        wanted = f"at least {10 * (window + 1)} so that 10% hold one window of {window}"
        raise DataError(f"{path}: {size} bytes, wanted {wanted}")
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return Corpus(path, data[:split], data[split:])


def batch(
    data: Integer[np.ndarray, " bytes"], seed: int, step: int, size: int, window: int
) -> Int[np.ndarray, "{size} {window}+1"]:
    """Batch number `step`: each epoch cuts the data at a new offset into windows and visits every
    one once, in a new order. A function of its arguments alone, so a resumed run sees the same."""
    count = (len(data) - 1) // window - (len(data) - 1 >= 2 * window)  # room for the offset
    rows = []
    for index in range(step * size, (step + 1) * size):
        order, offset = _epoch(seed, index // count, count, window, len(data))
        start = offset + order[index % count] * window
        rows.append(data[start : start + window + 1])
    return np.stack(rows).astype(np.int64)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int, window: int, length: int) -> tuple[np.ndarray, int]:
    random = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return random.permutation(count), int(random.integers(length - count * window))


def fresh_windows(
    data: Integer[np.ndarray, " bytes"], window: int
) -> tuple[Int[np.ndarray, "rows {window}+1"], Int[np.ndarray, "1 rest"]]:
    """The whole of `data` in windows that start without context: every byte but the first is
    predicted once. The windows of full length, then what is left (of length 1: nothing)."""
    count = (len(data) - 1) // window
    starts = np.arange(count)[:, None] * window
    rows = np.asarray(data)[starts + np.arange(window + 1)].astype(np.int64)
    return rows, np.asarray(data[count * window :]).astype(np.int64)[None]


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shakespeare(download: bool) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsm" / CORPUS_FILE
    places = [cache]
    if os.environ.get("TSM_DATA"):
        places.insert(0, Path(os.environ["TSM_DATA"]) / CORPUS_FILE)
    for path in places:
        if path.is_file():
            return _checked(path)
    if not download:
        looked = " or ".join(map(str, places))
        raise DataError(
            f"shakespeare: not in {looked}; set TSM_DATA, or let train.py --download fetch it"
        )
    return _fetch(cache)


def _checked(path: Path) -> Path:
    found = sha256(path)
    if found != CORPUS_SHA256:
        raise DataError(f"{path}: SHA-256 {found}, wanted {CORPUS_SHA256}")
    return path


def _fetch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    try:
        with (
            urllib.request.urlopen(CORPUS_URL, timeout=30) as answer,
            open(beside, "wb") as file,
            Progress() as progress,
        ):
            task = progress.add_task(f"downloading {CORPUS_FILE}", total=CORPUS_BYTES)
            while piece := answer.read(1 << 16):
                file.write(piece)
                progress.update(task, advance=len(piece))
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DataError(f"{CORPUS_URL}: cannot be downloaded ({error})") from None
    os.replace(_checked(beside), path)
    return path

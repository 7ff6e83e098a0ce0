"""A corpus as bytes: found, checked, memory-mapped, split 90/10, and drawn in batches.

Any file will do, text or binary: a token is a byte. Several of them, folders, compressed files and
tables are put together first: see documents.py. `shakespeare` names Tiny Shakespeare, looked
for in $TSM_DATA, then in the user's cache; `--download` of train.py fetches it there.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer
from rich.progress import Progress

from ..runtime.files import written
from .documents import CORPUS, TABLES, DataError, assemble, is_documents

CORPUS_FILE = "tinyshakespeare.txt"
CORPUS_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
CORPUS_BYTES = 1_115_394
CORPUS_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)


@dataclass(frozen=True)
class Corpus:
    name: str  # to show
    path: Path
    train: Integer[np.ndarray, " train"]  # the first 90%
    validation: Integer[np.ndarray, " validation"]  # the last 10%; no byte is in both
    summary: str = ""  # of the documents that it was put together from


def open_corpus(
    names: str | Path | Sequence[str | Path],
    window: int,
    download: bool = False,
    column: str | None = None,
    folder: Path | None = None,
) -> Corpus:
    """The corpus of one path or several, or `shakespeare`; both its parts hold at least one window
    + 1 bytes. column: of tables, whose values are the documents. folder: where documents are put
    together, by default a temporary one. Raises DataError."""
    names = [names] if isinstance(names, (str, Path)) else names
    if [str(name) for name in names] == ["shakespeare"]:
        return _file(_shakespeare(download), window)
    paths = [Path(name) for name in names]
    if not is_documents(paths, column):
        if column is not None and paths[0].is_file():
            tables = ", ".join(TABLES)
            raise DataError(f"{paths[0]}: no table with a column {column!r}, wanted {tables}")
        return _file(paths[0], window)
    if folder:
        return _assembled(paths, window, column, folder)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        return _assembled(paths, window, column, Path(temporary))


def _assembled(paths: list[Path], window: int, column: str | None, folder: Path) -> Corpus:
    found = assemble(paths, column, folder)
    shown = ", ".join(map(str, paths))
    return _split(folder / CORPUS, found.train_bytes, window, shown, found.summary())


def _file(path: Path, window: int) -> Corpus:
    if not path.is_file():
        raise DataError(f"{path}: no such file, wanted a file or a folder to learn from")
    return _split(path, path.stat().st_size * 9 // 10, window, str(path))


def _split(path: Path, split: int, window: int, name: str, summary: str = "") -> Corpus:
    size = path.stat().st_size
    if size - split < window + 1 or split < window + 1:
        wanted = f"at least {10 * (window + 1)} so that 10% hold one window of {window}"
        raise DataError(f"{name}: {size} bytes, wanted {wanted}")
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path}: {reason}, wanted a readable file") from None
    return Corpus(name, path, data[:split], data[split:], summary)


def batch(
    data: Integer[np.ndarray, " bytes"],
    seed: int,
    step: int,
    size: int,
    window: int,
    part: slice = slice(None),
) -> Int[np.ndarray, "rows {window}+1"]:
    """Batch number `step`: each epoch cuts the data at a new offset into windows and visits every
    one once, in a new order. A function of its arguments alone, so a resumed run sees the same.
    part: of its `size` rows, which are read."""
    count = (len(data) - 1) // window - (len(data) - 1 >= 2 * window)  # room for the offset
    rows = []
    for index in range(step * size, (step + 1) * size)[part]:
        order, offset = _epoch(seed, index // count, count, window, len(data))
        start = offset + order[index % count] * window
        rows.append(data[start : start + window + 1])
    return np.stack(rows).astype(np.int64)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, count: int, window: int, length: int) -> tuple[np.ndarray, int]:
    random = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64)))
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
    """Raises DataError for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: {(error.strerror or str(error)).lower()}, wanted a readable file"
        ) from None


def _shakespeare(download: bool) -> Path:
    home = os.path.expanduser("~")  # as it is where there is none, which Path.home() raises for
    cache = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "tsm" / CORPUS_FILE
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
    try:
        with urllib.request.urlopen(CORPUS_URL, timeout=30) as answer, Progress() as progress:
            task, pieces = progress.add_task(f"downloading {CORPUS_FILE}", total=CORPUS_BYTES), []
            while piece := answer.read(1 << 16):
                pieces.append(piece)
                progress.update(task, advance=len(piece))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{CORPUS_URL}: cannot be downloaded ({error})") from None
    text = b"".join(pieces)
    if (found := hashlib.sha256(text).hexdigest()) != CORPUS_SHA256:
        raise DataError(f"{CORPUS_URL}: SHA-256 {found}, wanted {CORPUS_SHA256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as file:
        file.write(text)
    return path

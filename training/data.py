"""A corpus as bytes: found, checked, memory-mapped, split 90/10, and drawn in batches.

Any file will do, text or binary: a token is a byte. Several of them, folders, compressed files and
tables are put together first: see documents.py. What is larger than memory may be is read where it
stands: see large.py. Some are known by name: see corpora.py.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from .corpora import CORPORA, find, sha256
from .documents import CORPUS, INDEX, LARGE, TABLES, DataError, assemble, is_documents
from .large import LargeText, large_batch, open_large

Text = Integer[np.ndarray, " _"] | LargeText


@dataclass(frozen=True)
class Corpus:
    name: str  # to show
    path: Path
    train: Text  # the first 90%, but for corpora known by name or large ones
    validation: Text  # the bytes after those
    test: Text  # what is left: of few corpora anything
    summary: str = ""  # of the documents that it was put together from


def open_corpus(
    names: str | Path | Sequence[str | Path],
    window: int,
    download: bool = False,
    column: str | None = None,
    folder: Path | None = None,
) -> Corpus:
    """The corpus of one path or several, or of a name; training and validation part hold at least
    one window + 1 bytes. column: of tables, whose values are the documents. folder: where documents
    are put together, by default a temporary one. Raises DataError."""
    names = [names] if isinstance(names, (str, Path)) else names
    if len(names) == 1 and (known := CORPORA.get(str(names[0]))):
        path = find(str(names[0]), download)
        return _split(path, (known.train, known.validation), window, str(path))
    paths = [Path(name) for name in names]
    if not is_documents(paths, column):
        if column is not None and paths[0].is_file():
            tables = ", ".join(TABLES)
            raise DataError(f"{paths[0]}: no table with a column {column!r}, wanted {tables}")
        if not (paths[0].is_file() and paths[0].stat().st_size > LARGE):
            return _file(paths[0], window)
    if folder:
        return _assembled(paths, window, column, folder)
    temporary = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return _assembled(paths, window, column, Path(temporary))


def _assembled(paths: list[Path], window: int, column: str | None, folder: Path) -> Corpus:
    found = assemble(paths, column, folder)
    shown = ", ".join(map(str, paths))
    sizes = found.train_bytes, found.validation_bytes
    path = folder / (CORPUS if found.prefix is None else INDEX)
    return _split(path, sizes, window, shown, found.summary())


def _file(path: Path, window: int) -> Corpus:
    if not path.is_file():
        raise DataError(f"{path}: no such file, wanted a file or a folder to learn from")
    train = path.stat().st_size * 9 // 10
    return _split(path, (train, path.stat().st_size - train), window, str(path))


def _split(path: Path, sizes: tuple[int, int], window: int, name: str, summary: str = "") -> Corpus:
    """sizes: bytes to learn from, and of the validation part."""
    if min(sizes) < window + 1:
        wanted = f"at least {10 * (window + 1)} so that 10% hold one window of {window}"
        raise DataError(f"{name}: {sum(sizes)} bytes, wanted {wanted}")
    data = text_at(path)
    train, held_out = data[: sizes[0]], data[sizes[0] :]
    validation, test = held_out[: sizes[1]], held_out[sizes[1] :]
    return Corpus(name, path, train, validation, test, summary)


def text_at(path: Path) -> Text:
    """The whole of a corpus, by its `path`. Raises DataError."""
    try:
        return open_large(path) if path.name == INDEX else np.memmap(path, np.uint8, "r")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DataError(f"{path}: {reason}, wanted a readable file") from None


def recorded_corpus(record: dict[str, Any], window: int) -> Corpus | None:
    """The text of a record that train.py wrote, where it still is; else None."""
    data, found = record.get("data"), record.get("data_sha256")
    try:
        if data:
            path = Path(data["path"])
            sizes = data["train_bytes"], data["validation_bytes"]
            corpus = _split(path, sizes, window, str(path))
        else:
            corpus = open_corpus("shakespeare", window)
        return corpus if sha256(corpus.path) == found else None
    except (DataError, OSError):
        return None


def batch(
    data: Text,
    seed: int,
    step: int,
    size: int,
    window: int,
    part: slice = slice(None),
) -> Int[np.ndarray, "rows {window}+1"]:
    """Batch number `step`: each epoch cuts the data at a new offset into windows and visits every
    one once, in a new order (a LargeText, at no offset). A function of its arguments alone, so a
    resumed run sees the same.
    part: of its `size` rows, which are read."""
    if isinstance(data, LargeText):
        return large_batch(data, seed, step, size, window, range(size)[part])
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
    data: Text, window: int
) -> tuple[Int[np.ndarray, "rows {window}+1"], Int[np.ndarray, "1 rest"]]:
    """The whole of `data` in windows that start without context: every byte but the first is
    predicted once. The windows of full length, then what is left (of length 1: nothing)."""
    count = (len(data) - 1) // window
    starts = np.arange(count)[:, None] * window
    rows = np.asarray(data)[starts + np.arange(window + 1)].astype(np.int64)
    return rows, np.asarray(data[count * window :]).astype(np.int64)[None]

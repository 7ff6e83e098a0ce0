"""A corpus of more than LARGE bytes: its documents are read where they stand, a window at a time,
and its batches are drawn ahead of the steps, in an order that takes no memory, both by Grain.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from .documents import CORPUS, RECORD, DataError, wanted

THREADS, AHEAD = 4, 8  # that read batches, and how many batches before they are asked for
MOST_EPOCHS = 1_000_000  # without a limit, Grain's batches of one have no length
NEWLINE = ord("\n")


@dataclass(frozen=True, eq=False)
class LargeText:
    """The bytes of documents in a row, each with a newline after it. A slice of it is another one;
    np.asarray reads it, and raises DataError."""

    files: list[str]  # the last one: what was copied
    number: np.ndarray  # by document, of its file
    start: np.ndarray  # and where it begins there
    ends: np.ndarray  # and where it ends in the row, after its newline
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, part: slice) -> LargeText:
        first, last, _ = part.indices(len(self))
        return replace(self, first=self.first + first, last=self.first + max(first, last))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        text = np.full(len(self), NEWLINE, np.uint8)
        document = int(np.searchsorted(self.ends, self.first, "right"))
        at = self.first
        while at < self.last:
            end = int(self.ends[document])
            begin = int(self.ends[document - 1]) if document else 0
            size = min(self.last, end - 1) - at
            if size > 0:  # 0: its newline alone
                part = text[at - self.first :][:size]
                self._read(document, at - begin, part)
            at, document = end, document + 1
        return text if dtype is None else text.astype(dtype)

    def _read(self, document: int, offset: int, part: Any) -> None:
        path = self.files[self.number[document]]
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(int(self.start[document]) + offset)
                read = file.readinto(part)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(f"{path}: {reason}, wanted it as it was at the start") from None
        if read != len(part):
            raise DataError(f"{path}: shorter than it was at the start, wanted it unchanged")


def open_large(path: Path) -> LargeText:
    """Of an index that documents.py wrote."""
    prefix = json.loads(path.with_name(RECORD).read_bytes())["prefix"]
    with open(path, "rb") as file, np.load(file) as index:
        names = os.fsdecode(index["names"].tobytes()).split("\0")
        number, start, ends = (index[name] for name in ("number", "start", "ends"))
    files = [prefix + name for name in names]
    return LargeText([*files, str(path.with_name(CORPUS))], number, start, ends, 0, int(ends[-1]))


def large_batch(
    text: LargeText, seed: int, step: int, size: int, window: int, rows: range
) -> Int[np.ndarray, "rows {window}+1"]:
    """Those rows of batch number `step`: each epoch visits every window once, in a new order."""
    batches = _batches(text, seed, size, window, rows)
    if batches.get_state()["next_index"] != step:
        batches.set_state({"next_index": step})
    return next(batches)


@functools.lru_cache(maxsize=2)
def _batches(text: LargeText, seed: int, size: int, window: int, rows: range) -> Any:
    grain = wanted("grain", text.files[0])

    def read(numbers: np.ndarray) -> np.ndarray:
        starts = numbers[rows.start : rows.stop] * window
        return np.stack([text[start : start + window + 1] for start in starts]).astype(np.int64)

    count = (len(text) - 1) // window
    order = grain.MapDataset.range(count).shuffle(seed=seed % 2**32).repeat(MOST_EPOCHS)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    return iter(order.batch(size).map(read).to_iter_dataset(options))

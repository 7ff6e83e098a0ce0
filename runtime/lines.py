"""Lines of a text without end, each with one score, and which of them are anomalies: more
surprising than nearly all of the lines before them.

The score of a line is its excess: the surprise of its bytes less the surprise that the model
expects there, its entropy; the mean over its bytes. Random numbers and addresses are as surprising
in every line, and so weigh nothing; benchmarks/logs.py compares it with other scores.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left, insort
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    # The bytes of a piece of text; of each, its nats and those that are expected there.
    Pieces = Iterable[tuple[bytes, Sequence[float], Sequence[float]]]
    Judged = Iterator[tuple["Line", float]]  # a line and the threshold of its score

KEPT_BYTES = 1000  # of a line, to be shown
NEWLINE = b"\n"


class Line:
    """A line, its newline included. Its text may be longer than what is kept of it."""

    def __init__(self, number: int, offset: int) -> None:
        self.number, self.offset = number, offset  # counted from 1; bytes before it
        self.bytes, self.nats, self.excess = 0, 0.0, 0.0  # both in nats
        self.column, self._greatest = 1, -math.inf  # of the byte of the greatest excess
        self.start, self.start_excess = bytearray(), array("f")  # of its text, and of each byte

    @property
    def score(self) -> float:
        """Its excess a byte."""
        return self.excess / self.bytes

    def add(self, data: bytes, nats: Sequence[float], expected: Sequence[float]) -> None:
        """Goes on by some bytes."""
        excess = [found - mean for found, mean in zip(nats, expected)]
        room = max(KEPT_BYTES - self.bytes, 0)
        self.start += data[:room].rstrip(NEWLINE)
        self.start_excess.extend(excess[:room])
        greatest = max(excess)
        if greatest > self._greatest:
            self._greatest, self.column = greatest, self.bytes + excess.index(greatest) + 1
        self.bytes += len(data)
        self.nats += sum(nats)
        self.excess += sum(excess)


def lines_of(pieces: Pieces) -> Iterator[Line]:
    """The lines of a text that comes in pieces; the last one may lack its newline."""
    line = Line(1, 0)
    for data, *surprise in pieces:
        start = 0
        while start < len(data):
            newline = data.find(NEWLINE, start)
            end = len(data) if newline < 0 else newline + 1
            line.add(data[start:end], *(values[start:end] for values in surprise))
            start = end
            if newline >= 0:
                yield line
                line = Line(line.number + 1, line.offset + line.bytes)
    if line.bytes:
        yield line


class SlidingQuantile:
    """What the `quantile` part of the last values, `window` of them, does not exceed."""

    def __init__(self, quantile: float, window: int) -> None:
        self._quantile, self._window = quantile, window
        self._values: deque[float] = deque()  # as they came
        self._sorted: list[float] = []

    def value(self) -> float:
        """Infinite while the values are too few for one to be above it."""
        count = len(self._sorted)
        below = math.ceil(self._quantile * count)
        if below == count:
            return math.inf
        return self._sorted[below - 1] if below else -math.inf

    def add(self, value: float) -> None:
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self._window:
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]


def judged(lines: Iterable[Line], quantile: SlidingQuantile) -> Judged:
    """Each line, and what its score must exceed to be an anomaly, by the lines before it."""
    for line in lines:
        yield line, quantile.value()
        quantile.add(line.score)


# Two ways to show lines, anomalies alone unless `every`. `unit`: its name, and what a nat is in it.


def listed(
    judged: Judged, unit: tuple[str, float], every: bool, show: Callable[[Line], str]
) -> Iterator[str]:
    """Its number, its score and its text, as `show` has it; then a line a total."""
    name, nat = unit
    count = anomalies = 0
    nats = excess = 0.0
    for line, threshold in judged:
        found = line.score > threshold
        count, anomalies = count + 1, anomalies + found
        nats, excess = nats + line.nats, excess + line.excess
        if found or every:
            more = "…" if line.bytes > KEPT_BYTES else ""
            yield f"{line.number:>8} {line.score * nat:8.3f} {name}/byte  {show(line)}{more}\n"
    totals = {"lines": count, f"total_{name}": nats * nat, f"excess_{name}": excess * nat}
    for key, value in (*totals.items(), ("anomalies_found", anomalies)):
        yield f"{key:>15}  {value:.6g}\n"


def as_json(judged: Judged, unit: tuple[str, float], every: bool) -> Iterator[str]:
    """An object a line."""
    name, nat = unit
    for line, threshold in judged:
        anomaly = line.score > threshold
        if not (anomaly or every):
            continue
        record: dict[str, Any] = {
            "line": line.number,
            "offset": line.offset,
            "bytes": line.bytes,
            name: line.nats * nat,
            f"excess_{name}_per_byte": line.score * nat,
            f"threshold_{name}_per_byte": threshold * nat if math.isfinite(threshold) else None,
            "anomaly": anomaly,
            "column": line.column,
            "text": line.start.decode("utf-8", "backslashreplace"),
        }
        yield json.dumps(record) + "\n"

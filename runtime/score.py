"""How surprising a text is to a TSM model, byte for byte: -log of the probability of each byte
given all before it.

    python runtime/score.py scene.txt
    tsm-score --unit bits --threshold 8 --json < access.log
    tsm-score --quantile 0.99 scene.txt     # the most surprising 1%

Reads any length in constant memory, with the model's state carried along. The first byte is read
and not scored, since nothing precedes it. A terminal shows the text, each character on a red as
strong as its most surprising byte; elsewhere, or with NO_COLOR set, each anomaly is a line:
line:column, the byte, its surprise. Lines and columns count from 1, columns in bytes. --threshold 0
lists every byte. --quantile needs 9 bytes of temporary disk for each byte of text.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import struct
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, BinaryIO

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.artifact import open_artifact
    from tsm.runtime.command import Parser, end, number, watched
    from tsm.runtime.engines import ENGINES, SHIPPED_MODEL, VOCABULARY, Engine, open_engine
    from tsm.runtime.files import opened
else:
    from artifact import open_artifact
    from command import Parser, end, number, watched
    from engines import ENGINES, SHIPPED_MODEL, VOCABULARY, Engine, open_engine
    from files import opened

PIECE_BYTES = 1024  # read at once: a mebibyte of logits
UNITS = {"nats": 1.0, "bits": 1 / math.log(2)}  # a nat in each
THRESHOLD_NATS = 5.0  # a probability of 0.7%
BINS_PER_NAT, MOST_NATS = 1024, 64  # how finely a quantile is known, and where its scale ends
# Backgrounds of the 256-color palette, darkest red first, each with the surprise that it begins at.
REDS_NATS = ((8.0, 196), (6.0, 160), (4.5, 124), (3.0, 88), (2.0, 52))
NEWLINE = 10
RECORD = struct.Struct("<Bd")  # a scored byte and its nats, on disk


def predicted(
    engine: Engine, before: bytes, read: Callable[[int], bytes]
) -> Iterator[tuple[int, array[float]]]:
    """Each byte that `read` gives, and the logits (256,) that `before` and all bytes before it
    give. The last byte is not read by the model."""
    piece = read(PIECE_BYTES)
    while piece:
        logits = engine.logits_of(before + piece[:-1])
        for row, byte in enumerate(piece):
            yield byte, logits[row * VOCABULARY : (row + 1) * VOCABULARY]
        before, piece = piece[-1:], read(PIECE_BYTES)


def nats(logits: Sequence[float], byte: int) -> float:
    """-log softmax(logits)[byte], in double precision."""
    best = max(logits)
    return math.log(sum([math.exp(x - best) for x in logits])) + best - logits[byte]


def at_quantile(
    scored: Iterable[tuple[int, float]], quantile: float
) -> tuple[float, Iterator[tuple[int, float]]]:
    """Nats that the `quantile` part of the bytes stays under, to 1/1024 nat, and the bytes again,
    which lie on disk meanwhile."""
    counts = [0] * (BINS_PER_NAT * MOST_NATS + 1)
    spool = tempfile.TemporaryFile()  # noqa: SIM115 (its last reader closes it)
    for byte, surprise in scored:
        counts[min(int(surprise * BINS_PER_NAT), len(counts) - 1)] += 1
        spool.write(RECORD.pack(byte, surprise))
    spool.seek(0)
    wanted, bound = quantile * sum(counts), 0
    while wanted > counts[bound]:
        wanted -= counts[bound]
        bound += 1
    return (bound + 1) / BINS_PER_NAT, _records(spool)


def _records(spool: BinaryIO) -> Iterator[tuple[int, float]]:
    with spool:
        while True:
            data = spool.read(RECORD.size * PIECE_BYTES)
            if not data:
                return
            yield from RECORD.iter_unpack(data)


class Totals:
    """Follows a text: where it is, what it has cost, which bytes are anomalies."""

    def __init__(self, threshold_nats: float) -> None:
        self._threshold = threshold_nats
        self.bytes = self.anomalies = 0  # read, and of those
        self.nats = 0.0
        self._line = self._column = 1

    def add(self, byte: int, surprise: float) -> dict[str, Any] | None:
        """Takes the next byte and its nats; says where it stands, if it is an anomaly."""
        found = None
        if surprise >= self._threshold and self.bytes:  # the first is not scored
            self.anomalies += 1
            place = {"offset": self.bytes, "line": self._line, "column": self._column}
            found = {**place, "byte": byte}
        self.bytes += 1
        self.nats += surprise
        self._column += 1
        if byte == NEWLINE:
            self._line, self._column = self._line + 1, 1
        return found

    def summary(self, unit: str) -> dict[str, Any]:
        scored = max(self.bytes - 1, 0)
        mean = self.nats / scored if scored else 0.0
        return {
            "bytes": self.bytes,
            "scored_bytes": scored,
            f"total_{unit}": self.nats * UNITS[unit],
            f"{unit}_per_byte": mean * UNITS[unit],
            "perplexity": math.exp(mean),  # per byte
            f"threshold_{unit}": self._threshold * UNITS[unit],
            "anomalies_found": self.anomalies,
        }


# Three ways to show scored bytes: each takes (byte, nats) as they come and makes text of them.


def listed(scored: Iterable[tuple[int, float]], totals: Totals, unit: str) -> Iterator[str]:
    """A line an anomaly, then a line a total."""
    for byte, surprise in scored:
        found = totals.add(byte, surprise)
        if found:
            place, name = f"{found['line']}:{found['column']}", repr(chr(byte))
            name = name if 32 <= byte < 127 else f"0x{byte:02X}"
            yield f"{place:>12}  {name:<5} {surprise * UNITS[unit]:6.2f} {unit}\n"
    yield "".join(f"{name:>15}  {value:.6g}\n" for name, value in totals.summary(unit).items())


def painted(scored: Iterable[tuple[int, float]], totals: Totals, unit: str) -> Iterator[str]:
    """The text in color, then a line a total. Controls are shown as escapes, so that no text can
    steer the terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    greatest = 0.0  # of the character's bytes so far
    for byte, surprise in scored:
        totals.add(byte, surprise)
        greatest = max(greatest, surprise)
        text = decoder.decode(bytes([byte]))
        if text:
            yield _paint(text, greatest)
            greatest = 0.0
    yield _paint(decoder.decode(b"", final=True), greatest) + "\n"
    yield "".join(f"{name:>15}  {value:.6g}\n" for name, value in totals.summary(unit).items())


def _paint(text: str, surprise: float) -> str:
    shown = "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )
    red = next((red for bound, red in REDS_NATS if surprise >= bound), None)
    if red is None or not shown:
        return shown
    shown = shown.replace("\n", "\\n\n")  # a surprising end of line is to be seen
    return f"\x1b[48;5;{red}m{shown}\x1b[0m"


def as_json(scored: Iterable[tuple[int, float]], totals: Totals, unit: str) -> Iterator[str]:
    """One object, written as it comes: the totals after the anomalies."""
    between = ""
    yield '{"anomalies": ['
    for byte, surprise in scored:
        found = totals.add(byte, surprise)
        if found:
            yield between + json.dumps({**found, unit: surprise * UNITS[unit]})
            between = ", "
    yield "], " + json.dumps(totals.summary(unit))[1:] + "\n"


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-score", __doc__)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="text to score (default: -, standard input)")
    add(
        "--model",
        type=Path,
        default=SHIPPED_MODEL,
        help="a .tflite or .onnx artifact (default: %(default)s)",
    )
    add("--engine", choices=ENGINES, default="", help="what computes (default: the best here)")
    add("--unit", choices=UNITS, default="nats", help="of surprise (default: %(default)s)")
    bounds = parser.add_mutually_exclusive_group()
    bounds.add_argument(
        "--threshold",
        type=number(float, 0, sys.float_info.max, "a finite number, 0 or more"),
        metavar="S",
        help="surprise from which a byte is an anomaly, in units (default: 5 nats, or 7.2 bits: a "
        "probability of 0.7%%)",
    )
    bounds.add_argument(
        "--quantile",
        type=number(float, 0, 1, "a number from 0 to 1"),
        metavar="Q",
        help="in place of a threshold: the part of the bytes that is no anomaly",
    )
    add(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set (default: %(default)s)",
    )
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def _run(arguments: Namespace) -> None:
    engine = open_engine(open_artifact(arguments.model), arguments.engine)
    colored = arguments.color == "always" or (
        arguments.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    show = as_json if arguments.json else painted if colored else listed
    threshold = THRESHOLD_NATS
    if arguments.threshold is not None:
        threshold = arguments.threshold / UNITS[arguments.unit]
    with opened(arguments.file) as file:
        first = file.read(1)
        rest = predicted(engine, first, file.read)
        scored: Iterator[tuple[int, float]] = ((byte, nats(logits, byte)) for byte, logits in rest)
        if show is not painted or arguments.quantile is not None:
            scored = watched(scored)
        if arguments.quantile is not None:
            threshold, scored = at_quantile(scored, arguments.quantile)
        unscored = ((byte, 0.0) for byte in first)
        for text in show(chain(unscored, scored), Totals(threshold), arguments.unit):
            sys.stdout.buffer.write(text.encode("utf-8"))  # in any locale
            if show is painted:
                sys.stdout.buffer.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    arguments = _arguments(argv)
    return end("tsm-score", lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())

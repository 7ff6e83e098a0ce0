"""How surprising a text is to a TSM model, byte for byte: -log of the probability of each byte
given all before it.

    python runtime/score.py scene.txt
    tsm-score --unit bits --threshold 8 --json < access.log
    tsm-score --quantile 0.99 scene.txt     # the most surprising 1%
    tsm-score --lines --follow --json /var/log/service.log

Reads any length in constant memory, with the model's state carried along. The first byte is read
and not scored, since nothing precedes it. A terminal shows the text, each character on a red as
strong as its most surprising byte; elsewhere, or with NO_COLOR set, each anomaly is a line:
line:column, the byte, its surprise. Lines and columns count from 1, columns in bytes. --threshold 0
lists every byte. --quantile needs 9 bytes of temporary disk for each byte of text.

With --lines each line has one score, its excess a byte: the surprise of its bytes less what the
model expects there. A line is an anomaly where that exceeds --threshold, or the --quantile of the
lines before it, --window of them. --json prints an object a line. --follow goes on with a file that
grows, also when another takes its name, and waits at its end.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, BinaryIO

if not __package__:
    from by_path import PACKAGE as __package__

from . import lines
from .artifact import open_artifact
from .command import (
    CommandError,
    Parser,
    number,
    open_output,
    progress,
    run_command,
    watched,
)
from .engines import ENGINES, SHIPPED_MODEL, VOCABULARY, Engine, open_engine
from .files import FollowedFile, open_input, temporary_file
from .text import printable

PIECE_BYTES = 1024  # read at once: a mebibyte of logits
UNITS = {"nats": 1.0, "bits": 1 / math.log(2)}  # a nat in each
THRESHOLD_NATS = 5.0  # a probability of 0.7%
LINES_QUANTILE, MOST_WINDOW = 0.99, 1_000_000
BINS_PER_NAT, MOST_NATS = 1024, 64  # how finely a quantile is known, and where its scale ends
# Backgrounds of the 256-color palette, darkest red first, each with the surprise that it begins at.
REDS_NATS = ((8.0, 196), (6.0, 160), (4.5, 124), (3.0, 88), (2.0, 52))
NEWLINE = 10
RECORD = struct.Struct("<Bd")  # a scored byte and its nats, on disk


def _pieces(
    engine: Engine, before: bytes, read: Callable[[int], bytes]
) -> Iterator[tuple[bytes, array[float]]]:
    """Each piece that `read` gives, and the logits (256 a byte) that `before` and all bytes before
    each byte give. The last byte is not read by the model."""
    piece = read(PIECE_BYTES)
    while piece:
        yield piece, engine.logits_of(before + piece[:-1])
        before, piece = piece[-1:], read(PIECE_BYTES)


def predicted(
    engine: Engine, before: bytes, read: Callable[[int], bytes]
) -> Iterator[tuple[int, array[float]]]:
    """Each byte that `read` gives, and the logits (256,) that all before it give."""
    for piece, logits in _pieces(engine, before, read):
        for row, byte in enumerate(piece):
            yield byte, logits[row * VOCABULARY : (row + 1) * VOCABULARY]


def scored(
    engine: Engine, before: bytes, read: Callable[[int], bytes]
) -> Iterator[tuple[bytes, Sequence[float], Sequence[float]]]:
    """Each piece that `read` gives, and of each of its bytes how surprising it is and how
    surprising one is there on average, in nats."""
    for piece, logits in _pieces(engine, before, read):
        yield (piece, *engine.nats(logits, piece))


def at_quantile(
    scored: Iterable[tuple[int, float]], quantile: float, spool: BinaryIO
) -> tuple[float, Iterator[tuple[int, float]]]:
    """Nats that the `quantile` part of the bytes stays under, to 1/1024 nat, and the bytes again,
    which lie in the file `spool` meanwhile."""
    counts = [0] * (BINS_PER_NAT * MOST_NATS + 1)
    for byte, surprise in scored:
        counts[min(int(surprise * BINS_PER_NAT), len(counts) - 1)] += 1
        spool.write(RECORD.pack(byte, surprise))
    spool.seek(0)
    wanted, bound = quantile * sum(counts), 0
    while wanted > counts[bound]:
        wanted -= counts[bound]
        bound += 1
    pieces = iter(lambda: spool.read(RECORD.size * PIECE_BYTES), b"")
    return (bound + 1) / BINS_PER_NAT, chain.from_iterable(map(RECORD.iter_unpack, pieces))


class Totals:
    """Follows a text: where it is, what it has cost, which bytes are anomalies."""

    def __init__(self, threshold_nats: float) -> None:
        self._threshold = threshold_nats
        self.bytes = self.anomalies = 0  # read, and of those
        self.nats = 0.0
        self._line = self._column = 1

    def add(self, byte: int, surprise: float) -> dict[str, Any] | None:
        """Takes the next byte and its nats; says where it stands, if it is an anomaly."""
        anomaly = None
        if surprise >= self._threshold and self.bytes:  # the first is not scored
            self.anomalies += 1
            position = {"offset": self.bytes, "line": self._line, "column": self._column}
            anomaly = {**position, "byte": byte}
        self.bytes += 1
        self.nats += surprise
        self._column += 1
        if byte == NEWLINE:
            self._line, self._column = self._line + 1, 1
        return anomaly

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
        anomaly = totals.add(byte, surprise)
        if anomaly:
            position = f"{anomaly['line']}:{anomaly['column']}"
            name = repr(chr(byte)) if 32 <= byte < 127 else f"0x{byte:02X}"
            yield f"{position:>12}  {name:<5} {surprise * UNITS[unit]:6.2f} {unit}\n"
    yield "".join(f"{name:>15}  {value:.6g}\n" for name, value in totals.summary(unit).items())


def painted(scored: Iterable[tuple[int, float]], totals: Totals, unit: str) -> Iterator[str]:
    """The text in color, then a line a total."""

    def counted() -> Iterator[tuple[int, float]]:
        for byte, surprise in scored:
            totals.add(byte, surprise)
            yield byte, surprise

    yield from colored(counted())
    yield "\n"
    yield "".join(f"{name:>15}  {value:.6g}\n" for name, value in totals.summary(unit).items())


def colored(scored: Iterable[tuple[int, float]]) -> Iterator[str]:
    """The text in color. Controls are shown as escapes, so that no text can steer the terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    greatest = 0.0  # of the character's bytes so far
    for byte, surprise in scored:
        greatest = max(greatest, surprise)
        text = decoder.decode(bytes([byte]))
        if text:
            yield _paint(text, greatest)
            greatest = 0.0
    yield _paint(decoder.decode(b"", final=True), greatest)


def _paint(text: str, surprise: float) -> str:
    shown = printable(text)
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
        anomaly = totals.add(byte, surprise)
        if anomaly:
            yield between + json.dumps({**anomaly, unit: surprise * UNITS[unit]})
            between = ", "
    yield "], " + json.dumps(totals.summary(unit))[1:] + "\n"


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-score", __doc__)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="text to score; - is standard input")
    add("--model", type=Path, default=SHIPPED_MODEL, help="a .tflite or .onnx artifact")
    add(
        "--engine",
        choices=ENGINES,
        default="",
        help="what computes (default: the best that is installed)",
    )
    add("--unit", choices=UNITS, default="nats", help="unit of surprise")
    bounds = parser.add_mutually_exclusive_group()
    bounds.add_argument(
        "--threshold",
        type=number(float, 0, sys.float_info.max, "a finite number, 0 or more"),
        metavar="S",
        help="surprise from which a byte is an anomaly, in units (default: 5 nats, or 7.2 bits: a "
        "probability of 0.7%%); with --lines the excess a byte above which a line is one",
    )
    bounds.add_argument(
        "--quantile",
        type=number(float, 0, 1, "a number from 0 to 1"),
        metavar="Q",
        help="in place of a threshold: the part of the bytes, or of the lines, that is no anomaly "
        f"(default with --lines: {LINES_QUANTILE})",
    )
    add("--lines", action="store_true", help="score lines in place of bytes")
    add(
        "--window",
        type=number(int, 1, MOST_WINDOW, f"a whole number, 1 to {MOST_WINDOW:,}"),
        metavar="N",
        default=10_000,
        help="lines that --quantile is of: the last ones",
    )
    add("--follow", action="store_true", help="with --lines: wait for more at the end of the file")
    add("--all", action="store_true", help="with --lines: show every line, not anomalies alone")
    add(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="show the text in color; auto: on a terminal, unless NO_COLOR is set",
    )
    add("--json", action="store_true", help="print one JSON object, or one a line with --lines")
    arguments = parser.parse_args(argv)
    for name in ("follow", "all"):
        if getattr(arguments, name) and not arguments.lines:
            parser.error(f"--{name}: found no --lines, wanted both")
    return arguments


def _run(arguments: Namespace) -> None:
    write = open_output()
    if arguments.file.endswith((".tflite", ".onnx")):
        raise CommandError(f"{arguments.file}: a model, wanted a text; --model names the model")
    engine = open_engine(open_artifact(arguments.model), arguments.engine)
    in_color = arguments.color == "always" or (
        arguments.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    threshold = None
    if arguments.threshold is not None:
        threshold = arguments.threshold / UNITS[arguments.unit]
    with ExitStack() as stack:
        shown = _lines if arguments.lines else _bytes
        for text in shown(arguments, engine, threshold, in_color, stack):
            write(text)


def _bytes(
    arguments: Namespace, engine: Engine, threshold: float | None, in_color: bool, stack: ExitStack
) -> Iterator[str]:
    show = as_json if arguments.json else painted if in_color else listed
    threshold = THRESHOLD_NATS if threshold is None else threshold
    file = stack.enter_context(open_input(arguments.file))
    first = file.read(1)
    pieces = scored(engine, first, file.read)
    each: Iterator[tuple[int, float]] = (
        pair for data, nats, _ in pieces for pair in zip(data, nats)
    )
    if show is not painted or arguments.quantile is not None:
        each = watched(each)
    if arguments.quantile is not None:
        spool = stack.enter_context(temporary_file())
        threshold, each = at_quantile(each, arguments.quantile, spool)
    unscored = ((byte, 0.0) for byte in first)
    yield from show(chain(unscored, each), Totals(threshold), arguments.unit)


def _lines(
    arguments: Namespace, engine: Engine, threshold: float | None, in_color: bool, stack: ExitStack
) -> Iterator[str]:
    follow = arguments.follow and arguments.file != "-"
    file = stack.enter_context((FollowedFile if follow else open_input)(arguments.file))
    pieces = scored(engine, lines.NEWLINE, file.read1)  # a line begins
    if not (follow or sys.stdout.isatty()):
        pieces = _with_progress(pieces)
    found = lines.lines_of(pieces)
    if threshold is None:
        quantile = LINES_QUANTILE if arguments.quantile is None else arguments.quantile
        judged = lines.judged(found, lines.SlidingQuantile(quantile, arguments.window))
    else:
        judged = ((line, threshold) for line in found)
    unit = arguments.unit, UNITS[arguments.unit]
    if arguments.json:
        return lines.as_json(judged, unit, arguments.all)
    return lines.listed(judged, unit, arguments.all, _in_color if in_color else _plain)


def _with_progress(pieces: lines.Pieces) -> lines.Pieces:
    """The pieces, and meanwhile how many bytes have gone by."""
    count = 0
    for piece in pieces:
        progress(f"{count:,} bytes")
        yield piece
        count += len(piece[0])
    progress()


def _in_color(line: lines.Line) -> str:
    return "".join(colored(zip(line.start, line.start_excess)))


def _plain(line: lines.Line) -> str:
    return printable(line.start.decode("utf-8", "backslashreplace"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-score", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

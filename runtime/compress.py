"""Compresses any file without loss by arithmetic coding with a TSM model, and takes it back.

    python runtime/compress.py scene.txt                     # writes scene.txt.tsm
    tsm-compress --decompress scene.txt.tsm                  # writes scene.txt
    tsm-compress - --out - < scene.txt > scene.tsm

Both sides compute the same predictions to the bit, so only the native engine will do: its
arithmetic is the same on every machine. A file is taken back by the very model that compressed it,
and is checked before it gets its name; the original is kept. Memory does not grow with the file.

The format, integers big-endian: TSMZ, version (1 byte), the model's SHA-256 (32 bytes), length of
the original (8), its CRC-32 (4), and the code: a range coder's over 65,536 parts, low and range of
64 bits, the model having read one newline before the first byte.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sys
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, BinaryIO

if not __package__:
    from by_path import PACKAGE as __package__

from .artifact import open_artifact
from .command import CommandError, Parser, open_output, run_command, watched
from .engines import SHIPPED_MODEL, EngineError, kinds
from .engines.native import NativeEngine
from .files import is_stream, open_input, temporary_file, written
from .score import predicted

SUFFIX = ".tsm"
START = b"\n"  # what the model has read before the first byte: a line begins
MAGIC, VERSION = b"TSMZ", 1
HEADER = struct.Struct(">4sB32sQI")
PART_BITS = 16  # frequencies are parts of 1 << 16
WORD_BITS, SHORT_BITS = 64, 56  # of low; a range below 1 << SHORT_BITS is extended
WORD_BYTES = WORD_BITS // 8
COPY_BYTES = 1 << 16  # at once
ZEROS = WORD_BYTES - 1  # bytes that the decoder reads beyond the code's end


class Encoder:
    """A range coder with carry: from (start, end) of each symbol, in parts of 1 << PART_BITS, to
    bytes. Exact in integers; its range never falls below 1 << 56, so nothing is lost but the last
    few bits of the file."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write
        self._low, self._range = 0, 1 << WORD_BITS
        # Bytes that a carry may still change: one, then a run of 0xFF. Before the first, none.
        self._held, self._run = b"", 0

    def encode(self, start: int, end: int) -> None:
        part = self._range >> PART_BITS
        self._low += start * part
        self._range = (end - start) * part
        while self._range < 1 << SHORT_BITS:
            self._range <<= 8
            self._shift()

    def finish(self) -> None:
        """Writes one byte more, so that zeros after it complete a number of the last range."""
        self._low = (self._low + (1 << SHORT_BITS) - 1) >> SHORT_BITS << SHORT_BITS
        self._shift()
        self._shift()  # writes what is held

    def _shift(self) -> None:
        """Moves the top byte out of low."""
        carry, top = self._low >> WORD_BITS, self._low >> SHORT_BITS & 0xFF
        if top == 0xFF and not carry:
            self._run += 1
        else:
            whole = int.from_bytes(self._held, "big") + carry
            self._write(bytes([whole])[: len(self._held)])
            self._write(bytes([0xFF + carry & 0xFF]) * self._run)
            self._held, self._run = bytes([top]), 0
        self._low = self._low << 8 & (1 << WORD_BITS) - 1


class Decoder:
    """The way back: from bytes to symbols. Raises CommandError where the code ends too soon or is
    none."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._zeros = read, 0
        self._range, self._code = 1 << WORD_BITS, 0
        for _ in range(WORD_BYTES):
            self._take()

    def decode(self, cumulative: Sequence[int]) -> int:
        """The symbol whose part of `cumulative`, sums from 0 to 1 << PART_BITS, comes next."""
        part = self._range >> PART_BITS
        target = self._code // part
        if target >> PART_BITS:
            raise CommandError("damaged, wanted a number within its range")
        symbol = bisect_right(cumulative, target) - 1
        self._code -= cumulative[symbol] * part
        self._range = (cumulative[symbol + 1] - cumulative[symbol]) * part
        while self._range < 1 << SHORT_BITS:
            self._range <<= 8
            self._take()
        return symbol

    def finish(self) -> None:
        if self._zeros < ZEROS or self._read(1):
            raise CommandError("goes on after its end, wanted nothing there")

    def _take(self) -> None:
        byte = self._read(1)
        self._zeros += not byte
        if self._zeros > ZEROS:
            raise CommandError("damaged or cut short, wanted all of its code")
        self._code = self._code << 8 | int.from_bytes(byte, "big")


class Measured:
    """A file that is measured while it is read, also by `others`, compressors to compare with."""

    def __init__(self, file: BinaryIO, others: dict[str, Any] | None = None) -> None:
        self._file, self._others = file, others or {}
        self.bytes = self.crc32 = 0
        self.others_bytes = dict.fromkeys(self._others, 0)

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self.bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        for name, other in self._others.items():
            self.others_bytes[name] += len(other.compress(data) if data else other.flush())
        return data


def compress(engine: NativeEngine, source: Measured, target: BinaryIO) -> None:
    """Writes to `target`, a file to seek in, what decompress makes `source` of."""
    target.write(bytes(HEADER.size))
    encoder = Encoder(target.write)
    engine.reset()
    for byte, logits in watched(predicted(engine, START, source.read)):
        cumulative = engine.frequencies(logits)
        encoder.encode(cumulative[byte], cumulative[byte + 1])
    encoder.finish()
    digest = bytes.fromhex(engine.artifact.sha256)
    target.seek(0)
    target.write(HEADER.pack(MAGIC, VERSION, digest, source.bytes, source.crc32))
    target.seek(0, os.SEEK_END)


def decompress(engine: NativeEngine, source: Measured, target: BinaryIO) -> int:
    """Writes the original to `target` and returns its length. Raises CommandError for a file that
    is damaged or another model's; what was written by then is worth nothing."""
    header = source.read(HEADER.size)
    if header[: len(MAGIC)] != MAGIC[: len(header)] or not header:
        raise CommandError("not made by tsm-compress, wanted TSMZ at its start")
    if len(header) < HEADER.size:
        raise CommandError(f"cut short, wanted a header of {HEADER.size} bytes")
    _, version, digest, length, wanted_crc32 = HEADER.unpack(header)
    if version != VERSION:
        raise CommandError(f"format {version}, wanted {VERSION}")
    if digest.hex() != engine.artifact.sha256:
        raise CommandError(
            f"compressed with the model of SHA-256 {digest.hex()}, "
            f"wanted that of {engine.artifact.path}, {engine.artifact.sha256}"
        )
    decoder, crc32, last = Decoder(source.read), 0, START
    engine.reset()
    for _ in watched(range(length), f" of {length:,}"):
        last = bytes([decoder.decode(engine.frequencies(engine.feed(last)))])
        crc32 = zlib.crc32(last, crc32)
        target.write(last)
    if crc32 != wanted_crc32:
        raise CommandError(f"damaged: CRC-32 {crc32:08x}, its header wants {wanted_crc32:08x}")
    decoder.finish()
    return length


def open_native(path: str | Path) -> NativeEngine:
    """Raises ArtifactError or EngineError."""
    artifact = open_artifact(path)
    if "native" not in kinds(artifact):
        raise EngineError(
            f"{path}: the native engine is not here or cannot run it, and compressing wants it: "
            "only its arithmetic is the same on every machine"
        )
    return NativeEngine(artifact)


@contextmanager
def _output(arguments: Namespace, mode: int | None) -> Iterator[BinaryIO]:
    """A file that appears under its name, or on standard output, a device or a pipe, once it is
    whole."""
    out = arguments.out
    if out == "-" or is_stream(out):
        with temporary_file() as file:
            yield file
            file.seek(0)
            if out == "-":
                write = open_output()
                for piece in iter(lambda: file.read(COPY_BYTES), b""):
                    write(piece)
            else:
                with written(out) as stream:
                    shutil.copyfileobj(file, stream)
        return
    if os.path.exists(out) and not arguments.force:
        raise CommandError(f"{out}: exists already, wanted a new name or --force")
    with written(out, mode) as file:
        yield file


def _mode(file: BinaryIO) -> int | None:
    """The permissions of a regular file: what is private stays private."""
    mode = os.fstat(file.fileno()).st_mode
    return stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def _others() -> dict[str, Any]:
    """What the standard library has to compare with; lzma is xz's, and not in every Python."""
    others: dict[str, Any] = {"zlib": zlib.compressobj(9)}
    try:
        import lzma

        others["lzma"] = lzma.LZMACompressor()
    except ImportError:
        pass
    return others


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-compress", __doc__)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="what to read; - is standard input")
    add("--decompress", "-d", action="store_true", help="take back what was compressed")
    add(
        "--out",
        "-o",
        metavar="FILE",
        help=f"what to write; - is standard output (default: the file's name with {SUFFIX} added "
        "or taken off; - for standard input)",
    )
    add("--model", type=Path, default=SHIPPED_MODEL, help="a quantized artifact")
    add("--force", "-f", action="store_true", help="write over a file that exists")
    add(
        "--json",
        action="store_true",
        help="print one JSON object: sizes, seconds, and what zlib and lzma make of the file",
    )
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        name = arguments.file
        if name != "-" and arguments.decompress:
            if Path(name).suffix != SUFFIX:  # nor has ".tsm" alone
                parser.error(f"{name}: no name ending in {SUFFIX}, wanted --out FILE")
            name = name[: -len(SUFFIX)]
        elif name != "-":
            name += SUFFIX
        arguments.out = name
    if arguments.json and arguments.out == "-":
        parser.error("--json found with the file itself on standard output, wanted --out FILE")
    return arguments


def _run(arguments: Namespace) -> None:
    to_stdout = arguments.out == "-"
    write = open_output() if arguments.json or to_stdout else None  # before anything is written
    if to_stdout and not arguments.decompress and sys.stdout.isatty():
        wanted = "wanted --out FILE or a pipe"
        raise CommandError(f"compressed data found on its way to a terminal, {wanted}")
    engine = open_native(arguments.model)
    started = time.perf_counter()
    report: dict[str, Any] = {"file": arguments.file, "out": arguments.out}
    others = _others() if arguments.json and not arguments.decompress else {}
    with open_input(arguments.file) as file, _output(arguments, _mode(file)) as target:
        source = Measured(file, others)
        if arguments.decompress:
            try:
                original_bytes = decompress(engine, source, target)
            except CommandError as error:
                raise CommandError(f"{arguments.file}: {error}") from None
            compressed_bytes = source.bytes
        else:
            compress(engine, source, target)
            original_bytes, compressed_bytes = source.bytes, target.tell()
            report.update({f"{name}_bytes": n for name, n in source.others_bytes.items()})
    seconds = time.perf_counter() - started
    report.update(
        original_bytes=original_bytes,
        compressed_bytes=compressed_bytes,
        bits_per_byte=8 * compressed_bytes / original_bytes if original_bytes else None,
        ratio=original_bytes / compressed_bytes,
        seconds=seconds,
    )
    if arguments.json and write:
        write(json.dumps(report) + "\n")
    elif sys.stderr.isatty():
        print(
            f"{arguments.out}: {original_bytes:,} bytes, compressed {compressed_bytes:,}, ratio "
            f"{report['ratio']:.2f}, {seconds:.1f} s",
            file=sys.stderr,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-compress", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""Many files as one corpus: folders, compressed files and tables, split by document.

A document is a file, or a value of a table's column. Of several alike one is kept; those nearly
alike stay on one side of the split, so that no validation text is in training. What is assembled
is one file: the documents to learn from, then those that are held out.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from ..runtime.files import written

try:
    from zstandard import ZstdError
except ModuleNotFoundError:  # the extra `data` brings it
    ZstdError = EOFError

CORPUS, RECORD = "corpus.bin", "corpus.json"  # in the folder of a run
COMPRESSED = (".gz", ".zst")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
VALIDATION_SHARE = 0.1  # of the bytes
VALIDATION_RANGE = 0.05, 0.2  # where whole documents do not come to that, the end is held out
BINARY_BYTES = 8192  # at the start of a file; with a NUL among them it is no text, as for grep
# 16 bands of 4: two documents that share half of their lines meet with a probability of 0.64.
PERMUTATIONS, BANDS = 64, 16
SIMILARITY = 0.7  # of their lines or words, together
LINES, WORDS = 8, 5  # a document of fewer lines is compared by WORDS words in a row
KINDS_SHOWN = 4
MOST_PARTS = 20_000  # of a document are compared


class DataError(ValueError):
    """A corpus that cannot be used: found and wanted, in one line."""


@dataclass(frozen=True)
class Assembled:
    """What was put together. Sizes in bytes."""

    train_bytes: int
    validation_bytes: int
    documents: int
    duplicates: int  # left out
    near_duplicates: int  # documents that are nearly the same as another
    binaries: int  # files left out
    kinds: dict[str, int]  # bytes by the suffix of the file, the most first
    by_document: bool  # how it was split
    sources: str  # a digest of names, sizes and times of the files

    def summary(self) -> str:
        """In a line."""
        left = f"{self.duplicates:,} duplicates and {self.binaries:,} binary files left out"
        split = "by document" if self.by_document else "at nine tenths: too few documents"
        total = self.train_bytes + self.validation_bytes
        kinds = [f"{size / total:.0%} {kind}" for kind, size in self.kinds.items()][:KINDS_SHOWN]
        near = f"{self.near_duplicates:,} near duplicates"
        shown = ", ".join(kinds)
        return f"{self.documents:,} documents of {shown} ({left}; {near}), split {split}"


def is_documents(paths: Sequence[Path], column: str | None) -> bool:
    """Whether there is more to it than one plain file."""
    suffixes = COMPRESSED if column is None else (*COMPRESSED, *TABLES)
    return len(paths) != 1 or paths[0].is_dir() or paths[0].suffix in (*suffixes, ".parquet")


def assemble(paths: Sequence[Path], column: str | None, folder: Path) -> Assembled:
    """Writes CORPUS to the folder, and RECORD beside it; or finds them there, of these very files.
    Raises DataError."""
    files = [file for path in paths for file in _files(path)]
    sources = _digest(files, column)
    with suppress(OSError, ValueError, TypeError):
        found = Assembled(**json.loads((folder / RECORD).read_text()))
        size = (folder / CORPUS).stat().st_size
        if found.sources == sources and size == found.train_bytes + found.validation_bytes:
            return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as store:
        documents, kinds, found = _gathered(files, column, store)
        held_out = _held_out(documents)
        order = [one for one in documents if one.group not in held_out]
        order += [one for one in documents if one.group in held_out]
        total = sum(one.size for one in documents)
        validation = sum(one.size for one in order if one.group in held_out)
        with written(folder / CORPUS) as file:
            for one in order:
                store.seek(one.start)
                file.write(store.read(one.size))
        validation = validation or total - total * 9 // 10
    result = Assembled(
        train_bytes=total - validation,
        validation_bytes=validation,
        documents=len(documents),
        kinds=dict(kinds.most_common()),
        by_document=bool(held_out),
        sources=sources,
        **found,
    )
    with written(folder / RECORD) as file:
        file.write(json.dumps(asdict(result), indent=2).encode() + b"\n")
    return result


@dataclass
class _Document:
    start: int  # in the store
    size: int
    digest: bytes
    group: int  # the number of the first document that is nearly the same


def _gathered(
    files: list[Path], column: str | None, store: IO[bytes]
) -> tuple[list[_Document], Counter[str], dict[str, int]]:
    """The documents, each once; all of them stand in `store`. Bytes by kind of file."""
    documents: list[_Document] = []
    seen: set[bytes] = set()
    near = _NearDuplicates()
    kinds: Counter[str] = Counter()
    found = {"duplicates": 0, "binaries": 0, "near_duplicates": 0}
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("")
        for number, file in enumerate(files):
            progress.update(task, description=f"reading {number + 1:,} of {len(files):,} files")
            for text in _documents(file, column):
                if text is None:
                    found["binaries"] += 1
                    continue
                digest = hashlib.sha256(text).digest()
                if digest in seen:
                    found["duplicates"] += 1
                    continue
                seen.add(digest)
                group = near.group(len(documents), text)
                found["near_duplicates"] += group != len(documents)
                size = store.write(text)
                kinds[file.suffix or file.name] += size
                documents.append(_Document(store.tell() - size, size, digest, group))
    if not documents:
        raise DataError(f"{len(files):,} files, no text in them, wanted a text to learn from")
    for one in documents:  # two groups may have become one
        one.group = near.first(one.group)
    return documents, kinds, found


class _NearDuplicates:
    """Which documents are nearly the same, by what their MinHashes share."""

    def __init__(self) -> None:
        self._index = RMinHashLSH(SIMILARITY, PERMUTATIONS, BANDS)
        self._hashes: dict[int, RMinHash] = {}
        self._above: dict[int, int] = {}  # another document of the group; none: the first

    def first(self, number: int) -> int:
        while number in self._above:
            number = self._above[number]
        return number

    def group(self, number: int, text: bytes) -> int:
        """Takes in a document. Returns the first of its group."""
        parts = text.splitlines()
        if len(parts) < LINES:
            words = text.split()
            parts = [b" ".join(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]
        if not parts:
            return number
        hashed = RMinHash(PERMUTATIONS, 0)
        hashed.update(parts[:MOST_PARTS])
        for other in sorted(self._index.query(hashed)):
            if hashed.jaccard(self._hashes[other]) >= SIMILARITY:
                a, b = sorted((self.first(other), self.first(number)))
                if a != b:
                    self._above[b] = a
        self._index.insert(number, hashed)
        self._hashes[number] = hashed
        return self.first(number)


def _held_out(documents: list[_Document]) -> set[int]:
    """The groups that are held out: in the order of their digests, so that a document which is
    added moves few others. None where they do not come near VALIDATION_SHARE of the bytes."""
    groups: dict[int, int] = {}
    for one in documents:
        groups[one.group] = groups.get(one.group, 0) + one.size
    total, chosen, size = sum(groups.values()), set(), 0
    least, most = (share * total for share in VALIDATION_RANGE)
    for group in sorted(groups, key=lambda group: documents[group].digest):
        if size < VALIDATION_SHARE * total and size + groups[group] <= most:
            chosen.add(group)
            size += groups[group]
    return chosen if size >= least else set()


def _files(path: Path) -> Iterator[Path]:
    """A file, or those of a folder and the folders in it, in order; hidden ones and those of runs
    are left out."""
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path}: no such file, wanted a file or a folder to learn from")
        yield path
        return
    for folder, folders, names in os.walk(path, onerror=_refused):
        if CORPUS in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                yield file


def _refused(error: OSError) -> None:
    raise DataError(f"{error.filename}: {(error.strerror or '').lower()}, wanted it readable")


def _digest(files: list[Path], column: str | None) -> str:
    digest = hashlib.sha256(repr(column).encode())
    for file in files:
        status = file.stat()
        digest.update(f"\0{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _documents(file: Path, column: str | None) -> Iterator[bytes | None]:
    """What a file holds; None: not text. Each ends with a newline. Raises DataError."""
    suffixes = file.suffixes[-2:]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = suffixes[-1] if suffixes else ""
    try:
        with _opened(file, compression) as opened:
            if kind in TABLES and (column is not None or kind == ".parquet"):
                values = _parquet if kind == ".parquet" else _json_lines
                values = _csv if kind in (".csv", ".tsv") else values
                for value in values(file, opened, column or "text"):
                    yield _ended(value.encode("utf-8", "surrogateescape"))
            else:
                data = opened.read()
                yield None if _is_binary(data) else _ended(_as_utf8(data))
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{file}: {reason.lower()}, wanted a readable file") from None


def _ended(text: bytes) -> bytes:
    return text if text.endswith(b"\n") else text + b"\n"


def _is_binary(data: bytes) -> bool:
    return b"\0" in data[:BINARY_BYTES] and not data.startswith(UTF16)


def _as_utf8(data: bytes) -> bytes:
    """Without a byte order mark; UTF-16, which has one, in UTF-8."""
    if data.startswith(UTF16):
        return data.decode("utf-16", "replace").encode()
    return data.removeprefix(codecs.BOM_UTF8)


def _opened(file: Path, compression: str) -> io.BufferedIOBase:
    if compression == ".gz":
        return gzip.open(file, "rb")
    if compression == ".zst":
        zstandard = _wanted("zstandard", file)
        return zstandard.open(file, "rb")
    return open(file, "rb")


def _wanted(package: str, file: Path):
    """A package of the extra `data`."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        extra = "pip install -e '.[data]' in a clone of the project"
        raise DataError(f"{file}: {package} is not installed, wanted: {extra}") from None


def _text(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")


def _json_lines(file: Path, opened: io.BufferedIOBase, column: str) -> Iterator[str]:
    with _text(opened) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"{file}: line {number} is not JSON, wanted an object") from None
            value = row.get(column) if isinstance(row, dict) else None
            if not isinstance(value, str):
                there = ", ".join(row) if isinstance(row, dict) else "no object"
                raise _no_column(f"{file}: line {number}", column, there)
            yield value


def _csv(file: Path, opened: io.BufferedIOBase, column: str) -> Iterator[str]:
    csv.field_size_limit(1 << 30)
    with _text(opened) as lines:
        rows = csv.DictReader(lines, delimiter="\t" if ".tsv" in file.suffixes else ",")
        try:
            for row in rows:
                value = row.get(column)
                if value is None:
                    there = ", ".join(rows.fieldnames or ())
                    raise _no_column(f"{file}: line {rows.line_num}", column, there)
                yield value
        except csv.Error as error:
            raise DataError(f"{file}: {error}, wanted a table") from None


def _parquet(file: Path, opened: io.BufferedIOBase, column: str) -> Iterator[str]:
    parquet = _wanted("pyarrow.parquet", file)
    error = _wanted("pyarrow", file).ArrowException
    try:
        table = parquet.ParquetFile(opened)
        if column not in table.schema_arrow.names:
            raise _no_column(f"{file}", column, ", ".join(table.schema_arrow.names))
        for batch in table.iter_batches(columns=[column]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise DataError(f"{file}: {column} holds {value!r:.40}, wanted text")
                yield value
    except error as wrong:
        reason = str(wrong).splitlines()[0]
        raise DataError(f"{file}: {reason}, wanted a whole Parquet file") from None


def _no_column(place: str, column: str, there: str) -> DataError:
    return DataError(
        f"{place}: no text in column {column!r}, wanted --column, one of: {there:.200}"
    )

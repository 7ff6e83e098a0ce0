"""Many files as one corpus: folders, compressed files and tables, split by document.

A document is a file, or a value of a table's column. Of several alike one is kept; those nearly
alike stay on one side of the split, so that no validation text is in training. What is assembled
is one file: the documents to learn from, then those that are held out. Of more than LARGE bytes
it is an index of them instead: plain files stay where they are, and only their beginnings are read.
"""

from __future__ import annotations

import codecs
import csv
import filecmp
import gzip
import hashlib
import io
import json
import os
import stat
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from ..runtime.files import written

try:
    from zstandard import ZstdError
except ModuleNotFoundError:  # the extra `data` brings it
    ZstdError = EOFError

# In the folder of a run. INDEX: of a large corpus, of which CORPUS holds what had to be copied.
CORPUS, RECORD, INDEX = "corpus.bin", "corpus.json", "corpus.npz"
LARGE = 1_000_000_000  # bytes of its files, together
COMPRESSED = (".gz", ".zst")
TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
VALIDATION_SHARE, MOST_VALIDATION = 0.1, LARGE // 10  # of the bytes, and in bytes
VALIDATION_RANGE = 0.5, 2  # times that; where whole documents do not come to it, the end is
BINARY_BYTES = 8192  # at the start of a file; with a NUL among them it is no text, as for grep
# 16 bands of 4: two documents that share half of their lines meet with a probability of 0.64.
PERMUTATIONS, BANDS = 64, 16
SIMILARITY = 0.7  # of their lines or words, together
LINES, WORDS = 8, 5  # a document of fewer lines is compared by WORDS words in a row
KINDS_SHOWN = 4
MOST_PARTS = 20_000  # of a document are compared
HEAD = 4096  # bytes: so much of each plain file of a large corpus is read and compared,
THREADS, GROUP = 8, 64  # by so many threads, so many files a call
COPIED = -1  # in place of the number of a file


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
    prefix: str | None = None  # of a large corpus: what the names of its files begin with
    copied_bytes: int | None = None  # of it, to CORPUS

    def summary(self) -> str:
        """In a line."""
        left = f"{self.duplicates:,} duplicates and {self.binaries:,} binary files left out"
        split = "by document" if self.by_document else "at the end: too few documents"
        total = self.train_bytes + self.validation_bytes
        kinds = [f"{size / total:.0%} {kind}" for kind, size in self.kinds.items()][:KINDS_SHOWN]
        near = f"{self.near_duplicates:,} near duplicates"
        shown = ", ".join(kinds)
        large = "" if self.prefix is None else f", compared by their first {HEAD:,} bytes"
        return f"{self.documents:,} documents of {shown} ({left}; {near}){large}, split {split}"


def is_documents(paths: Sequence[Path], column: str | None) -> bool:
    """Whether there is more to it than one plain file."""
    suffixes = COMPRESSED if column is None else (*COMPRESSED, *TABLES)
    return len(paths) != 1 or paths[0].is_dir() or paths[0].suffix in (*suffixes, ".parquet")


def assemble(paths: Sequence[Path], column: str | None, folder: Path) -> Assembled:
    """Writes CORPUS to the folder, of a large corpus INDEX too, and RECORD beside it; or finds them
    there, of these very files. Raises DataError."""
    files = [file for path in paths for file in _files(path)]
    if not is_documents(paths, column):
        files[0].as_is = True
    sources = _digest(files, column)
    with suppress(OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        found = Assembled(**json.loads((folder / RECORD).read_text()))
        if found.sources == sources and _are_there(found, folder):
            return found
    folder.mkdir(parents=True, exist_ok=True)
    large = sum(file.size for file in files) > LARGE
    put_together = _indexed if large else _copied
    result = put_together(files, column, folder, sources)
    with written(folder / RECORD) as file:
        file.write(json.dumps(asdict(result), indent=2).encode() + b"\n")
    return result


def _are_there(found: Assembled, folder: Path) -> bool:
    total = found.train_bytes + found.validation_bytes
    if found.prefix is not None:
        with open(folder / INDEX, "rb") as file, np.load(file) as index:
            if index["ends"][-1] != total:
                return False
        total = found.copied_bytes
    return (folder / CORPUS).stat().st_size == total


def _copied(files: list[_File], column: str | None, folder: Path, sources: str) -> Assembled:
    with tempfile.TemporaryFile(dir=folder) as store:
        documents, figures = _gathered(files, column, store, large=False)
        order, validation, by_document = _split(documents)
        with written(folder / CORPUS) as file:
            for one in order:
                store.seek(one.start)
                file.write(store.read(one.size))
    train = sum(one.size for one in documents) - validation
    return Assembled(train, validation, sources=sources, by_document=by_document, **figures)


def _indexed(files: list[_File], column: str | None, folder: Path, sources: str) -> Assembled:
    with written(folder / CORPUS) as store:
        documents, figures = _gathered(files, column, store, large=True)
        copied = store.tell()
    order, validation, by_document = _split(documents)
    names = [os.path.abspath(file.path) for file in files]
    prefix = os.path.commonprefix(names)  # apart: a corpus that is moved has the same index
    names = "\0".join(name.removeprefix(prefix) for name in names)
    ends = np.cumsum([one.size for one in order])
    with written(folder / INDEX) as file:
        np.savez(
            file,
            names=np.frombuffer(os.fsencode(names), np.uint8),
            number=np.array([one.file for one in order], np.int32),
            start=np.array([one.start for one in order], np.int64),
            ends=ends,
            digest=np.frombuffer(b"".join(one.digest for one in order), np.uint8),
        )
    train = int(ends[-1]) - validation
    return Assembled(
        train,
        validation,
        sources=sources,
        by_document=by_document,
        prefix=prefix,
        copied_bytes=copied,
        **figures,
    )


def _split(documents: list[_Document]) -> tuple[list[_Document], int, bool]:
    """In the order of the corpus, the bytes at its end that are held out, and whether those are
    whole documents."""
    held_out = _held_out(documents)
    order = [one for one in documents if one.group not in held_out]
    validation = [one for one in documents if one.group in held_out]
    total = sum(one.size for one in documents)
    size = sum(one.size for one in validation) or min(total - total * 9 // 10, MOST_VALIDATION)
    return order + validation, size, bool(held_out)


@dataclass(slots=True)
class _Document:
    file: int  # its number; COPIED: it stands in the store
    start: int  # there
    size: int  # with its newline
    digest: bytes
    group: int = 0  # the number of the first document that is nearly the same


def _gathered(
    files: list[_File], column: str | None, store: IO[bytes], large: bool
) -> tuple[list[_Document], dict[str, Any]]:
    """The documents, each once, and figures of them. They are copied to `store`; of a large
    corpus, plain files are not."""
    documents: list[_Document] = []
    seen: dict[bytes, _Document] = {}
    near = _NearDuplicates()
    kinds: Counter[str] = Counter()
    found = {"duplicates": 0, "binaries": 0, "near_duplicates": 0}
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    heads = _heads(files, column) if large else [None] * len(files)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("")
        for number, (file, head) in enumerate(zip(files, heads, strict=True)):
            if number % GROUP == 0:
                progress.update(task, description=f"reading {number + 1:,} of {len(files):,} files")
            for text in _documents(file.path, column) if head is None else [_plain(file, head)]:
                if text is None:
                    found["binaries"] += 1
                    continue
                if head is None:
                    one = _Document(COPIED, store.tell(), len(text), hashlib.sha256(text).digest())
                else:
                    one = _in_place(number, file.size, text, len(head) - len(text))
                if (same := seen.get(one.digest)) and _are_equal(files, same, one):
                    found["duplicates"] += 1
                    continue
                seen[one.digest] = one
                one.group = near.group(len(documents), text[:HEAD] if large else text)
                found["near_duplicates"] += one.group != len(documents)
                if head is None:
                    store.write(text)
                kinds[file.path.suffix or file.path.name] += one.size
                documents.append(one)
    if not documents:
        raise DataError(f"{len(files):,} files, no text in them, wanted a text to learn from")
    for one in documents:  # two groups may have become one
        one.group = near.first(one.group)
    figures = {"documents": len(documents), "kinds": dict(kinds.most_common()), **found}
    return documents, figures


def _in_place(number: int, file_size: int, text: bytes, start: int) -> _Document:
    """text: its beginning, which stands at `start`."""
    if file_size <= HEAD:
        whole = _ended(text)
        return _Document(number, start, len(whole), hashlib.sha256(whole).digest())
    size = file_size - start + 1
    return _Document(number, start, size, hashlib.sha256(b"%s\0%d" % (text, size)).digest())


def _are_equal(files: list[_File], one: _Document, other: _Document) -> bool:
    """Whether two of one digest are."""
    if COPIED in (one.file, other.file) or files[other.file].size <= HEAD:
        return True
    return filecmp.cmp(files[one.file].path, files[other.file].path, shallow=False)


def _heads(files: list[_File], column: str | None) -> Iterator[bytes | None]:
    """The beginning of each file that can be read in place, read ahead; of others None."""
    grain = wanted("grain", f"a corpus of more than {LARGE:,} bytes")

    def read(first: int) -> list[bytes | None]:
        return [_head(file, column) for file in files[first : first + GROUP]]

    groups = grain.MapDataset.range(0, len(files), GROUP).map(read)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    for heads in groups.to_iter_dataset(options):
        yield from heads


def _head(file: _File, column: str | None) -> bytes | None:
    if any(_format(file.path, column)):
        return None
    try:
        with open(file.path, "rb", buffering=0) as opened:
            head = opened.read(HEAD)
    except OSError as error:
        raise _unreadable(file.path, error) from None
    return None if head.startswith(UTF16) and not file.as_is else head


def _plain(file: _File, head: bytes) -> bytes | None:
    if file.as_is:
        return head
    return None if _is_binary(head) else head.removeprefix(codecs.BOM_UTF8)


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
        similarity = 0.0
        for other in sorted(self._index.query(hashed)):
            similarity = max(similarity, found := hashed.jaccard(self._hashes[other]))
            if found >= SIMILARITY:
                a, b = sorted((self.first(other), self.first(number)))
                if a != b:
                    self._above[b] = a
        if similarity < 1:  # else it is there: a thousand files that begin alike are one
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
    wanted = min(VALIDATION_SHARE * total, MOST_VALIDATION)
    least, most = (times * wanted for times in VALIDATION_RANGE)
    for group in sorted(groups, key=lambda group: documents[group].digest):
        if size < wanted and size + groups[group] <= most:
            chosen.add(group)
            size += groups[group]
    return chosen if size >= least else set()


@dataclass(slots=True)
class _File:
    path: Path
    size: int
    time: int  # of its last change, in nanoseconds
    as_is: bool = False  # the one plain file of a corpus: any bytes


def _files(path: Path) -> Iterator[_File]:
    """A file, or those of a folder and the folders in it, in order; hidden ones and those of runs
    are left out."""
    if not path.is_dir():
        file = _regular(path)
        if not file:
            raise DataError(f"{path}: no such file, wanted a file or a folder to learn from")
        yield file
        return
    for folder, folders, names in os.walk(path, onerror=_refused):
        if CORPUS in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and (file := _regular(Path(folder, name))):
                yield file


def _regular(path: Path) -> _File | None:
    with suppress(OSError, ValueError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return _File(path, status.st_size, status.st_mtime_ns)
    return None


def _refused(error: OSError) -> None:
    raise DataError(f"{error.filename}: {(error.strerror or '').lower()}, wanted it readable")


def _digest(files: list[_File], column: str | None) -> str:
    digest = hashlib.sha256(repr(column).encode())
    for file in files:
        digest.update(f"\0{os.path.abspath(file.path)}\0{file.size}\0{file.time}".encode())
    return digest.hexdigest()


def _format(file: Path, column: str | None) -> tuple[str, str]:
    """The suffix of what compresses it, and of a table whose rows are documents; "": none."""
    suffixes = file.suffixes[-2:]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else ""
    kind = suffixes[-1] if suffixes else ""
    is_table = kind in TABLES and (column is not None or kind == ".parquet")
    return compression, kind if is_table else ""


def _documents(file: Path, column: str | None) -> Iterator[bytes | None]:
    """What a file holds; None: not text. Each ends with a newline. Raises DataError."""
    compression, kind = _format(file, column)
    try:
        with _opened(file, compression) as opened:
            if kind:
                values = _parquet if kind == ".parquet" else _json_lines
                values = _csv if kind in (".csv", ".tsv") else values
                for value in values(file, opened, column or "text"):
                    yield _ended(value.encode("utf-8", "surrogateescape"))
            else:
                data = opened.read()
                yield None if _is_binary(data) else _ended(_as_utf8(data))
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return DataError(f"{file}: {reason.lower()}, wanted a readable file")


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
        zstandard = wanted("zstandard", file)
        return zstandard.open(file, "rb")
    return open(file, "rb")


def wanted(package: str, what: object):
    """A package of the extra `data`, which `what` needs. Raises DataError."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        extra = "pip install -e '.[data]' in a clone of the project"
        raise DataError(f"{what}: {package} is not installed, wanted: {extra}") from None


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
    parquet = wanted("pyarrow.parquet", file)
    error = wanted("pyarrow", file).ArrowException
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

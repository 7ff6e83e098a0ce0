"""The corpora that are known by name: looked for in $TSM_DATA, then in the user's cache, or
downloaded there, on request alone; their checksums are known."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import lzma
import os
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.progress import Progress

from ..runtime.files import written
from .documents import DataError

PIECE = 1 << 20


@dataclass(frozen=True)
class NamedCorpus:
    """Sizes are in bytes. What is left after `train` and `validation` is the test part."""

    file: str  # its name; file.xz is taken, too, and unpacked into the cache
    size: int
    train: int
    validation: int
    sha256: str
    url: str  # of the file, or of a zip archive that has it


CORPORA = {
    "shakespeare": NamedCorpus(
        file="tinyshakespeare.txt",
        size=1_115_394,
        train=1_003_854,
        validation=111_540,
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    "enwik8": NamedCorpus(
        file="enwik8",
        size=100_000_000,
        train=90_000_000,
        validation=5_000_000,
        sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        url="https://mattmahoney.net/dc/enwik8.zip",
    ),
}


def find(name: str, download: bool) -> Path:
    """The file of a corpus of CORPORA. Raises DataError."""
    corpus = CORPORA[name]
    home = os.path.expanduser("~")  # as it is where there is none, which Path.home() raises for
    cache = Path(os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache") / "tsm"
    folders = [Path(os.environ["TSM_DATA"]), cache] if os.environ.get("TSM_DATA") else [cache]
    for path in (folder / corpus.file for folder in folders):
        if path.is_file():
            return _checked(path, corpus)
    for path in (folder / f"{corpus.file}.xz" for folder in folders):
        if path.is_file():
            return _unpacked(path, cache / corpus.file, corpus)
    if not download:
        looked = " or ".join(str(folder / corpus.file) for folder in folders)
        raise DataError(
            f"{name}: not in {looked}; set TSM_DATA, or let train.py --download fetch it"
        )
    return _downloaded(cache / corpus.file, corpus)


def sha256(path: Path) -> str:
    """Raises DataError for a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: {(error.strerror or str(error)).lower()}, wanted a readable file"
        ) from None


def _checked(path: Path, corpus: NamedCorpus) -> Path:
    if (found := sha256(path)) != corpus.sha256:
        raise DataError(f"{path}: SHA-256 {found}, wanted {corpus.sha256}")
    return path


def _unpacked(packed: Path, path: Path, corpus: NamedCorpus) -> Path:
    try:
        with lzma.open(packed) as file:
            return _stored(_pieces(file.read, corpus.size, "unpacking"), path, packed, corpus)
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{packed}: cannot be unpacked ({error})") from None


def _downloaded(path: Path, corpus: NamedCorpus) -> Path:
    try:
        with tempfile.TemporaryFile() as temporary, contextlib.ExitStack() as archives:
            with urllib.request.urlopen(corpus.url, timeout=30) as answer:
                size = int(answer.headers.get("Content-Length") or corpus.size)
                for piece in _pieces(answer.read, size, f"downloading {corpus.file}"):
                    temporary.write(piece)
            file: IO[bytes] = temporary
            if zipfile.is_zipfile(temporary):
                archive = archives.enter_context(zipfile.ZipFile(temporary))
                file = archives.enter_context(archive.open(corpus.file))
            temporary.seek(0)
            return _stored(iter(lambda: file.read(PIECE), b""), path, corpus.url, corpus)
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{corpus.url}: cannot be downloaded ({error})") from None


def _pieces(read: Callable[[int], bytes], size: int, shown: str) -> Iterator[bytes]:
    """What is read, in pieces, with a progress bar over `size` bytes."""
    with Progress() as progress:
        task = progress.add_task(shown, total=size)
        while piece := read(PIECE):
            yield piece
            progress.update(task, advance=len(piece))


def _stored(pieces: Iterable[bytes], path: Path, source: object, corpus: NamedCorpus) -> Path:
    """Writes them to `path`, whole and with the checksum wanted, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with written(path) as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        if (found := digest.hexdigest()) != corpus.sha256:
            raise DataError(f"{source}: SHA-256 {found}, wanted {corpus.sha256}")
    return path

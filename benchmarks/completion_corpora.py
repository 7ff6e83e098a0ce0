"""The texts that completion.py measures on: what is learned from, and what is held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable
from pathlib import Path

from tsm.training.data import open_corpus

STATUS = Path("/var/lib/dpkg/status")  # Debian's record of what is installed
PYTHON_BYTES = 4_500_000  # of source; the rest of the library would be read less than once
# Tables, other people's code, and what repeats the library's text.
EXCLUDED = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "site-packages"}
HELD_OUT = 10  # one file or group of stanzas in so many


def shakespeare() -> tuple[bytes, bytes]:
    """Tiny Shakespeare as the shipped model has learned it: the first 90%, the last 10%."""
    corpus = open_corpus("shakespeare", 256)
    return bytes(corpus.train), bytes(corpus.validation)


def python() -> tuple[bytes, bytes]:
    """The standard library's source, split by file."""
    root = Path(sysconfig.get_path("stdlib"))
    files = {
        str(path.relative_to(root)): path
        for path in root.rglob("*.py")
        if not EXCLUDED & set(path.relative_to(root).parts[:-1])
    }
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    size = 0
    for name in sorted(files, key=_digest):
        data = files[name].read_bytes()
        if b"\0" in data or size + len(data) > PYTHON_BYTES:
            continue
        size += len(data)
        parts[_held_out(name)].append(data)
    return b"".join(parts[False]), b"".join(parts[True])


def debian() -> tuple[bytes, bytes]:
    """Control stanzas of the installed packages, split by source package."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    stanzas = STATUS.read_text("utf-8").strip().split("\n\n")
    for stanza in sorted(stanzas, key=_digest):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        source = fields.get("Source", fields["Package"]).split()[0]
        parts[_held_out(source)].append(stanza + "\n\n")
    return "".join(parts[False]).encode(), "".join(parts[True]).encode()


CORPORA: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "shakespeare": shakespeare,
    "python": python,
    "debian": debian,
}


def _digest(name: str) -> str:
    """An order that is the same on every machine and has nothing to do with names."""
    return hashlib.sha256(name.encode()).hexdigest()


def _held_out(name: str) -> bool:
    return int(_digest("held out: " + name), 16) % HELD_OUT == 0

"""Files that commands read and write."""

from __future__ import annotations

import contextlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.command import CommandError
else:
    from command import CommandError


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """The file to read; - is standard input. Raises CommandError."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CommandError(f"{path}: {reason}, wanted a readable file") from None
        yield file


@contextlib.contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its name once it is whole; nothing is left of it if not."""
    beside = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError) and error.filename in (None, beside):
            error.filename = str(path)  # a full disk does not say whose
        raise

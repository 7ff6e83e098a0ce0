"""Files that commands read and write: named in their errors, whole or not written at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

STDIN = "standard input"
POLL_SECONDS = 0.1  # between two looks at a file that is followed
NAME_BYTES = 230  # of 255; the rest is for what makes the name of an unfinished file


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """An OSError that does not say which file it is about is about `name`: a full disk, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


class _NamedInput(io.FileIO):
    """A file, also one known by its number alone, whose errors name it."""

    def __init__(self, file: str | int, name: str) -> None:
        super().__init__(file, closefd=isinstance(file, str))
        self._label = name

    def readinto(self, buffer) -> int | None:
        with naming(self._label):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with naming(self._label):
            return super().readall()


def open_input(path: str) -> io.BufferedReader:
    """The file to read; - is standard input. Raises OSError, which names it."""
    if path == "-" and sys.stdin is None:
        raise OSError(errno.EBADF, "closed, wanted it open", STDIN)
    file, name = (0, STDIN) if path == "-" else (path, path)
    with naming(name):
        return io.BufferedReader(_NamedInput(file, name))


class FollowedFile:
    """A file that is read as it grows, by its name: when another takes its name (rotation), that
    one is read after it; where it is cut short, it is read from its start. Raises OSError."""

    def __init__(self, path: str) -> None:
        self._path, self._file = path, open_input(path)

    def __enter__(self) -> FollowedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read1(self, count: int) -> bytes:
        """The next bytes, `count` at most; waits for them."""
        while True:
            data = self._file.read1(count)
            if data:
                return data
            next_file = self._renewed()
            if next_file is self._file:
                time.sleep(POLL_SECONDS)
            else:
                # What was written between the last look at the old file and the new one's coming.
                data = self._file.read1(count)
                if data:
                    next_file.close()
                    return data
                self._file.close()
                self._file = next_file

    def _renewed(self) -> io.BufferedReader:
        """The file that has the name now; rewound, where it is the same and shorter than read."""
        now = os.fstat(self._file.fileno())
        with contextlib.suppress(FileNotFoundError):  # between two files, it has none
            if not os.path.samestat(now, os.stat(self._path)):
                return open_input(self._path)
        if stat.S_ISREG(now.st_mode) and now.st_size < self._file.tell():
            self._file.seek(0)
        return self._file


@contextlib.contextmanager
def temporary_file() -> Iterator[BinaryIO]:
    """A file without a name, to write and read again. Raises OSError, which names its folder."""
    import tempfile

    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        error.filename = "temporary folder"
        raise
    with naming(f"temporary file in {folder}"), tempfile.TemporaryFile() as file:
        yield file


def is_stream(path: str | os.PathLike[str]) -> bool:
    """A device, a pipe, or the file that standard output or standard error goes to: it takes bytes
    as they come, and must not be replaced."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode):
            return True
        for number in (1, 2):
            with contextlib.suppress(OSError):
                if os.path.samestat(status, os.fstat(number)):
                    return True
    return False


@contextlib.contextmanager
def written(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` once it is whole. If it does not become whole,
    nothing is left of it and the file of that name stays as it was.

    Links are followed. `mode`: its permissions; by default those of the file that it replaces, or
    what the umask leaves of 0666. To a device or a pipe the bytes go as they come; what is neither
    that nor a regular file is refused. Raises OSError, which names `path`.
    """
    path = os.fspath(path)
    with naming(path):
        if is_stream(path):
            with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
                yield file
            return
        if not os.path.basename(path):
            raise OSError(errno.EISDIR, "names no file", path)
        goal, replaced = os.path.realpath(path), None
        if os.path.lexists(goal):
            replaced = os.stat(path)
            if not stat.S_ISREG(replaced.st_mode):
                kind = "folder" if stat.S_ISDIR(replaced.st_mode) else "block device or a socket"
                raise OSError(errno.EINVAL, f"is a {kind}, wanted a file", path)
            if not os.access(goal, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            mode = stat.S_IMODE(replaced.st_mode) if mode is None else mode
        folder, name = os.path.split(goal)
        short = os.fsdecode(os.fsencode(name)[:NAME_BYTES])
        unfinished = os.path.join(folder, f"{short}.{os.urandom(4).hex()}.partial")
        creation_mode = 0o666 if mode is None else mode & 0o777
        try:
            with open(unfinished, "xb", opener=lambda p, f: os.open(p, f, creation_mode)) as file:
                if replaced and hasattr(os, "chown"):  # by root: the file stays its owner's
                    with contextlib.suppress(PermissionError):
                        os.chown(unfinished, replaced.st_uid, replaced.st_gid)
                if mode is not None:
                    os.chmod(unfinished, mode & 0o777)  # the umask has been at it
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, goal)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(unfinished)
            if isinstance(error, OSError) and error.filename == unfinished:
                error.filename = error.filename2 = None  # to be called by the name that was given
            raise

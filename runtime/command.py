"""What the commands of this folder share: arguments, progress, and how a command ends."""

from __future__ import annotations

import argparse
import math
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.artifact import ArtifactError
    from tsm.runtime.engines import EngineError
else:
    from artifact import ArtifactError
    from engines import EngineError

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


class CommandError(ValueError):
    """What a command cannot do: found and wanted, in one line."""


class Parser(argparse.ArgumentParser):
    """Its help is the docstring as it stands; a mistake is one line, without argparse's usage."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=help_formatter(argparse.RawDescriptionHelpFormatter),
        )

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def help_formatter(kind: type[argparse.HelpFormatter]) -> Any:
    """That kind, told its width: it would import shutil, and that bz2 and lzma, to ask for it."""
    try:
        columns = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
    except (OSError, ValueError):
        columns = 80
    return lambda prog: kind(prog, width=columns - 2)


def number(kind: type, low: float, high: float, wanted: str) -> Callable[[str], Any]:
    """A type of argument: a number of a kind from low to high, both included."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # also false for nan
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted {wanted}")
        return value

    return parse


def end(prog: str, work: Callable[[], None], *errors: type[Exception]) -> int:
    """Does the work and returns the exit code: 0, 2 after one line about bad input (`errors` are
    those of the work's own), 130 for Ctrl-C. A reader that has had enough of standard output is no
    mistake."""
    try:
        work()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ArtifactError, CommandError, EngineError, *errors) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.filename is None:
            # What is left in the buffer must not be tried, and reported, again at shutdown.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        place = error.filename or "standard output"
        print(f"{prog}: {place}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return BAD_INPUT


def progress(text: str = "") -> None:
    """Shows how far the work is, on one line of a terminal; without text, clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def watched(items: Iterable[T], of: str = "") -> Iterator[T]:
    """The items, one a byte, and meanwhile how many have gone by."""
    for count, item in enumerate(items):
        if count % 1024 == 0:
            progress(f"{count:,}{of} bytes")
        yield item
    progress()

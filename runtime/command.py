"""What all commands share: arguments, progress, standard streams and signals, and how a command
ends."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn, TypeVar

    T = TypeVar("T")

from .artifact import ArtifactError
from .engines import EngineError
from .files import naming
from .version import __version__

BAD_INPUT, SIGNALLED = 2, 128  # exit codes: the latter plus the number of the signal
STDOUT = "standard output"
# What ends a command as Ctrl-C does; closing a terminal window sends SIGHUP, which Windows lacks.
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class CommandError(ValueError):
    """What a command cannot do: found and wanted, in one line."""


class Signalled(KeyboardInterrupt):
    """A signal of SIGNALS, whose number is its argument."""


class Parser(argparse.ArgumentParser):
    """argparse's, with the docstring of a command as its help, the default of each option at the
    end of its own, `--version`, and one line for a mistake."""

    def __init__(self, prog: str, description: str | None) -> None:
        super().__init__(
            prog=prog, description=description, allow_abbrev=False, formatter_class=_HelpFormatter
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """After --help and --version, which a closed pipe or a full disk may have cut short."""
        raise SystemExit(run_command(self.prog, lambda: None))

    def error(self, message: str) -> NoReturn:
        complain(self.prog, message)
        raise SystemExit(BAD_INPUT)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str) -> None:
        try:
            columns = os.get_terminal_size().columns
        except OSError:
            columns = 100
        super().__init__(prog, width=columns - 2)  # else argparse loads shutil, which costs 0.5 MB

    def _get_help_string(self, action: argparse.Action) -> str | None:
        none = action.default in (None, "", []) or action.default is False
        return action.help if none else super()._get_help_string(action)


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


@contextlib.contextmanager
def needs(prog: str, extra: str) -> Iterator[None]:
    """Around the imports of a command: a package that is not installed ends it in one line that
    names the extra which brings it, and Ctrl-C in one line too."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        wanted = f"pip install -e '.[{extra}]' in a clone of the project"
        complain(prog, f"{package} is not installed, wanted: {wanted}")
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt as error:
        complain(prog, "interrupted")
        raise SystemExit(_exit_code(error)) from None


def run_command(prog: str, work: Callable[[], None], *errors: type[Exception]) -> int:
    """Does the work of a command, its arguments included, and returns the exit code: 0; 2 after one
    line about bad input, where `errors` are those of the work's own; 128 and the number of the
    signal that ended it, 130 for Ctrl-C. A reader that has had enough of standard output is no
    mistake."""
    _replace_closed_streams()
    try:
        with signals_handled_by(_raise):
            try:
                work()
            finally:  # also after --help
                if sys.stdout:
                    sys.stdout.flush()
        return 0
    except KeyboardInterrupt as error:
        return _exit_code(error)
    except (ArtifactError, CommandError, EngineError, *errors) as error:
        complain(prog, str(error))
        return BAD_INPUT
    except MemoryError:
        complain(prog, "out of memory, wanted less to read")
        return BAD_INPUT
    except OSError as error:
        name = STDOUT if error.filename is None else error.filename  # open_input and written tell
        if name == STDOUT:
            _discard_buffer(sys.stdout)
            if isinstance(error, BrokenPipeError):
                return 0
        complain(prog, f"{name}: {(error.strerror or str(error)).lower()}")
        return BAD_INPUT


def _exit_code(error: KeyboardInterrupt) -> int:
    return SIGNALLED + (error.args[0] if isinstance(error, Signalled) else signal.SIGINT)


def _replace_closed_streams() -> None:
    """Of the standard streams those that are closed: a file must not get their numbers, or what a
    library prints would go there. sys.stdin and sys.stdout stay None, which tells of it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def _discard_buffer(stream: Any) -> None:
    """So that what could not be written is not tried, and reported, again at shutdown."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _raise(number: int, _: object) -> NoReturn:
    raise Signalled(number)


@contextlib.contextmanager
def signals_handled_by(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """SIGNALS meanwhile go to `handler`, except those that the process was started to ignore, as
    nohup has it."""
    before = {}
    try:
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a library's own
                before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def open_output() -> Callable[[str | bytes], None]:
    """What writes to standard output at once: bytes, or text as UTF-8 in any locale, with bytes
    that were decoded with "surrogateescape" as they were. Raises CommandError where there is no
    standard output, so call it before the work."""
    if sys.stdout is None:
        raise CommandError(f"{STDOUT}: closed, wanted it open")
    # Not sys.stdout.buffer: with PYTHONUNBUFFERED that has no buffer, and may write less than all.
    file = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115 (until the process ends)

    def write(data: str | bytes) -> None:
        with naming(STDOUT):
            file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
            file.flush()

    return write


def another_command(script: str) -> str:
    """How to run another command of the project, `runtime/generate` say, the way that this one was
    run: by its path or as it is installed."""
    import shlex

    if not sys.argv[0].endswith(".py"):
        return "tsm-" + script.partition("/")[2].replace("_", "-")
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.argv[0])))
    return f"python {shlex.quote(os.path.relpath(os.path.join(root, script + '.py')))}"


def complain(prog: str, message: str) -> None:
    """One line on standard error, if that can be written to."""
    try:
        if sys.stderr:
            print(f"{prog}: {message}", file=sys.stderr)
    except OSError:
        _discard_buffer(sys.stderr)


def progress(text: str = "") -> None:
    """Shows how far the work is, on one line of a terminal; without text, clears it."""
    if sys.stderr.isatty():
        with contextlib.suppress(OSError):
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def watched(items: Iterable[T], of: str = "") -> Iterator[T]:
    """The items, one a byte, and meanwhile how many have gone by."""
    for count, item in enumerate(items):
        if count % 1024 == 0:
            progress(f"{count:,}{of} bytes")
        yield item
    progress()

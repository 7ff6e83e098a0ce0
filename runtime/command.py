"""What the commands of this folder share: arguments, progress, and how a command ends."""

from __future__ import annotations

import math
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
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


class ArgumentError(ValueError):
    """A value that an argument cannot have: found and wanted, in one line."""


SUPPRESS = object()  # as argparse's: no default


class Arguments:
    """What argparse calls a namespace."""

    def __contains__(self, name: str) -> bool:
        return name in vars(self)


class Group:
    """Arguments declared together, as argparse wants them."""

    def __init__(self, parser: Parser, method: str = "", *title: str) -> None:
        self.parser, self.method, self.title = parser, method, title

    def add_argument(self, *names: str, **how: Any) -> None:
        self.parser.declared.append((self, names, how))


class Parser(Group):
    """argparse, of which nothing is imported for a line that needs no more than names and values:
    with its regular expressions it is 1.3 MB, and a third of the time to the first byte.

    Its help is the docstring as it stands; a mistake is one line, without argparse's usage.
    """

    def __init__(self, prog: str, description: str | None, defaults: bool = False) -> None:
        super().__init__(self)
        self.prog, self.description, self.defaults = prog, description, defaults
        self.declared: list[tuple[Group, tuple[str, ...], dict[str, Any]]] = []

    def add_argument_group(self, title: str) -> Group:
        return Group(self, "add_argument_group", title)

    def add_mutually_exclusive_group(self) -> Group:
        return Group(self, "add_mutually_exclusive_group")

    def parse_args(self, argv: Sequence[str] | None = None) -> Any:
        words = sys.argv[1:] if argv is None else list(argv)
        return self.plain(words) or self.whole().parse_args(words)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)

    def plain(self, words: Sequence[str]) -> Arguments | None:
        """What argparse would find in the words; None if they are anything but whole names of
        options, values of one word and positional arguments, all as they should be."""
        found = Arguments()
        values, options, positional = vars(found), {}, []
        for group, names, how in self.declared:
            name = how.get("dest") or names[0].lstrip("-").replace("-", "_")
            default = how.get("default", False if "action" in how else None)
            if isinstance(default, str):
                default = how.get("type", str)(default)
            if default is not SUPPRESS:
                values[name] = default
            if names[0][0] == "-":
                options.update(dict.fromkeys(names, (group, name, how)))
            else:
                positional.append((group, name, how))
        left, given, exclusive = list(reversed(words)), [], set()
        while left:
            word = left.pop()
            if word[:1] != "-" or word == "-":
                if not positional:
                    return None
                (group, name, how), text = positional.pop(0), word
            else:
                option, equals, text = word.partition("=")
                if option not in options:
                    return None
                group, name, how = options[option]
                if how.get("action") == "store_true":
                    if equals:
                        return None
                    values[name] = True
                    continue
                if not equals:
                    if not left or (left[-1][:1] == "-" and left[-1] != "-"):
                        return None
                    text = left.pop()
            if group in exclusive or how.get("nargs", "?") != "?":
                return None
            if group.method == "add_mutually_exclusive_group":
                exclusive.add(group)
            given.append((name, how, text))
        for name, how, text in given:  # not before all is there: a value may be standard input
            try:
                value = how.get("type", str)(text)
            except ValueError:
                return None
            if value not in how.get("choices", (value,)):
                return None
            appended = how.get("action") == "append"
            values[name] = [*values.get(name, ()), value] if appended else value
        return found

    def whole(self) -> argparse.ArgumentParser:
        """argparse's own parser of the same arguments."""
        import argparse

        def told(kind: Callable[[str], Any]) -> Callable[[str], Any]:
            def parse(text: str) -> Any:
                try:
                    return kind(text)
                except ArgumentError as error:
                    raise argparse.ArgumentTypeError(str(error)) from None

            return parse

        class Defaults(argparse.ArgumentDefaultsHelpFormatter):
            def _get_help_string(self, action: argparse.Action) -> str | None:
                none = action.default in (None, "", []) or action.default is False
                return action.help if none else super()._get_help_string(action)

        kind = Defaults if self.defaults else argparse.RawDescriptionHelpFormatter
        try:  # argparse would import shutil, and that bz2 and lzma, to ask for it
            columns = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
        except (OSError, ValueError):
            columns = 80
        parser = argparse.ArgumentParser(
            prog=self.prog,
            description=self.description,
            allow_abbrev=False,
            formatter_class=lambda prog: kind(prog, width=columns - 2),
        )
        parser.error = self.error
        made: dict[Group, Any] = {self: parser}
        for group, names, how in self.declared:
            if group not in made:
                made[group] = getattr(parser, group.method)(*group.title)
            how = dict(how)
            if "type" in how:
                how["type"] = told(how["type"])
            if how.get("default") is SUPPRESS:
                how["default"] = argparse.SUPPRESS
            made[group].add_argument(*names, **how)
        return parser


def number(kind: type, low: float, high: float, wanted: str) -> Callable[[str], Any]:
    """A type of argument: a number of a kind from low to high, both included."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # also false for nan
            raise ArgumentError(f"found {text!r}, wanted {wanted}")
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

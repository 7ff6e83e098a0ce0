"""A conversation by lines: each is read, and the text that follows is its answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from typing import Any

from .command import Signalled, signals_handled_by
from .files import open_input
from .stream import Stream


def converse(stream: Stream, write: Callable[[str], object], count: int, **ends: Any) -> None:
    """Answers each line of standard input until its end (Ctrl-D), with `count` bytes at most;
    `ends`: as for Stream.generate. Ctrl-C ends an answer, whose text stays part of the stream, or
    clears the line that is being typed; at an empty line it ends the conversation."""
    answering, received = False, 0

    def handle(signal_number: int, _: object) -> None:
        nonlocal received
        if not answering:
            raise Signalled(signal_number)
        received = signal_number
        stream.cancel()

    with signals_handled_by(handle):
        for line in _lines(write):
            answering, received = True, 0
            stream.feed(line)
            for piece in stream.generate(count, **ends):
                write(piece)
            write("\n")
            answering = False
            if received not in (0, signal.SIGINT):
                raise Signalled(received)


def _lines(write: Callable[[str], object]) -> Iterator[bytes]:
    """The lines of standard input; on a terminal they can be edited."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        with open_input("-") as file:
            yield from iter(file.readline, b"")
        return
    try:
        import readline  # input() edits lines once it is imported
    except ImportError:
        readline = None
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # the very bytes typed
    while True:
        try:
            line = input("> ") + "\n"
        except EOFError:
            write("\n")
            return
        except Signalled as signalled:
            write("\n")
            if readline and readline.get_line_buffer() and signalled.args[0] == signal.SIGINT:
                continue
            raise
        yield line.encode("utf-8", "surrogateescape")

"""A conversation by lines: each is read, and the text that follows is its answer."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

TYPE_CHECKING = False

if TYPE_CHECKING:
    import re

    from tsm.runtime.stream import Stream


def converse(
    stream: Stream,
    write: Callable[[str], None],
    *,
    count: int,
    stops: Sequence[str] = (),
    regexes: Sequence[re.Pattern[str]] = (),
) -> None:
    """Answers each line of standard input until its end (Ctrl-D), with `count` bytes at most.
    Ctrl-C ends an answer, whose text stays part of the stream; at an empty line, the conversation.
    """
    leave = signal.getsignal(signal.SIGINT)
    while True:
        if sys.stdin.isatty():
            write("> ")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            stream.finish_reason = "cancelled"
            line = b""
        signal.signal(signal.SIGINT, lambda *_: stream.cancel())
        if not line:
            break
        stream.feed(line)
        for piece in stream.generate(count, stops=stops, regexes=regexes):
            write(piece)
        write("\n")
        stream.finish_reason = ""
    signal.signal(signal.SIGINT, leave)
    write("\n" if sys.stdin.isatty() else "")

"""Text from bytes as they come: whole characters, up to where it is to stop. And how a terminal is
shown it."""

from __future__ import annotations

import codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Generator, Iterable, Sequence

# Text is held back so long that no match of a stop expression of up to so many characters can
# have begun in what is out: 0.1 s at 2,000 bytes/s.
REGEX_WINDOW = 256
# The C0 controls but for tab and newline, DEL, and the C1 controls.
_CONTROLS = {*range(32), *range(0x7F, 0xA0)} - {ord("\t"), ord("\n")}
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS}


def printable(text: str) -> str:
    """The text with its control characters as escapes, so that it cannot steer a terminal: for
    generated text and other people's files, when standard output is one."""
    return text.translate(_ESCAPES)


def decode_text(
    source: Iterable[int],
    stops: Sequence[str] = (),
    regexes: Sequence[re.Pattern[str]] = (),
    errors: str = "replace",
) -> Generator[str, None, bool]:
    """Yields text: never part of a character, nor any of a stop string or of the match of an
    expression, before which it ends. Returns whether one of them ended it.

    `errors`: what becomes of bytes that are not UTF-8, as for bytes.decode: "replace" makes U+FFFD
    of them, "surrogateescape" keeps them for the way back. An expression is tried at every
    character and sees the text so far, of which the last REGEX_WINDOW may be in its match.
    """
    decoder, before, held = codecs.getincrementaldecoder("utf-8")(errors), "", ""
    for byte in source:
        character = decoder.decode(bytes([byte]))
        if not character:
            continue
        held += character
        found = [at for at in map(held.find, stops) if at >= 0]
        for regex in regexes:
            match = regex.search(before + held, len(before))
            if match:
                found.append(match.start() - len(before))
        if found:
            if min(found):
                yield held[: min(found)]
            return True
        safe = len(held) - max(_stop_begun(held, stops), REGEX_WINDOW - 1 if regexes else 0)
        if safe > 0:
            yield held[:safe]
            if regexes:
                before = (before + held[:safe])[-REGEX_WINDOW:]  # for what looks behind
            held = held[safe:]
    rest = held + decoder.decode(b"", final=True)
    if rest:
        yield rest
    return False


def _stop_begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may turn out to begin a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next(
        (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0
    )

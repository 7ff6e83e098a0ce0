"""Completes a text as one types: the most probable rest of a word or of a line.

    python runtime/complete.py --prompt "What say you to this gentle"
    tsm-complete --to line --count 3 --json < scene.txt
    tsm-complete --loop     # for an editor's plugin

Each completion is a line: its probability, then the text, with [-N] before it where it replaces the
last N characters, which it takes for a typing error. A completion whose probability is below
--threshold is not shown: often there is none. With --loop each line of standard input is a JSON
string, the whole text before the cursor, and its answer a JSON object; of that text no more is read
than what is new. From Python:

    from tsm.runtime import load
    from tsm.runtime.complete import Completer

    with load() as model, Completer(model) as completer:
        completer.follow("What say you to this gentle")  # the text before the cursor
        for completion in completer.complete():
            print(completion.text, completion.probability)
"""

from __future__ import annotations

import heapq
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from math import exp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

if not __package__:
    from by_path import PACKAGE as __package__

from .command import CommandError, Parser, number, open_output, run_command
from .engines import ENGINES, SHIPPED_MODEL
from .files import STDIN, open_input
from .stream import EMPTY_PROMPT, Model, Stream, load
from .text import printable

THRESHOLD = 0.55  # of probability: of what is shown two thirds or more are right
MAX_BYTES = 48  # of a completion
CONTEXT_BYTES = 1024  # read again after a jump; the model is trained on windows of 256
DENSE_BYTES = 16  # before the cursor, at each of which a deletion costs nothing
WORD_BYTES = 32  # no word is longer
SPARSE_BYTES = 64  # between two places that are kept before those
PLACES = 32  # of the text, kept at once: 40 KB each with the shipped model
LOOKAHEAD = 24  # places beside the text, kept within a word
CANDIDATES = 3  # words looked for at least: the most probable may be short and save few keys
STEPS = 16  # bytes that may be looked at for each of them
EDIT_PROBABILITY = 2e-3  # of one certain typing error in a word, times how likely a word has one
CORRECTION_STEPS = 16  # bytes that the search for a typing error may look at
USUAL_PROBABILITY = 0.15  # of a byte within a word: which candidates are tried first
CORRECTION_CHARACTERS = 2  # of a word, from which an error is looked for
CORRECTIONS = 2  # words that may have been meant, of which the rest is looked for
# A model of this size forgets names. So the byte that came after the last bytes where they stood
# before gets part of the probability: by how many bytes at least are alike, what part: means
# of what benchmarks/completion.py --fit finds, rounded.
REPEATED = ((32, 0.65), (25, 0.6), (17, 0.55), (9, 0.4), (7, 0.3), (6, 0.25), (5, 0.2), (4, 0.15))
REPEATED += ((3, 0.1),)
HISTORY_BYTES = 16384  # of the text, in which they are looked for
UNITS = ("word", "line")
_LINE_ENDS = b"\r\n"
_LEADS = range(0xC2, 0xF5)  # the first byte of a character beyond ASCII
_FOLLOWING = frozenset(range(0x80, 0xC0))  # its other bytes
_ASCII_WORD = {byte for byte in range(128) if chr(byte).isalnum() or byte == ord("_")}
# Words are made of all that is beyond ASCII but for these: those of Latin-1, punctuation and
# symbols, those of Chinese and Japanese, their wide forms, what is no character, emoji.
_PUNCTUATION = (
    (0x80, 0xBF),
    (0x2000, 0x2BFF),
    (0x3000, 0x3004),
    (0x3008, 0x3020),
    (0xFF00, 0xFF0F),
)
_PUNCTUATION += ((0xFF1A, 0xFF20), (0xFFF0, 0xFFFF), (0x1F000, 0x1FAFF))
_NO_WORD = sorted(set(range(128)) - _ASCII_WORD)
_WORD = frozenset({*_ASCII_WORD, *_LEADS})
_LINE = frozenset({ord("\t"), *range(32, 127), *_LEADS})


@dataclass(frozen=True)
class Completion:
    """Text to put in at the cursor."""

    text: str
    probability: float  # that the text goes on so, and that its last word ends there
    replaced: int = 0  # characters before the cursor that it takes the place of: a typing error


class _Place:
    """A place in a text: what the model remembers there, and the places a byte further."""

    def __init__(self, stream: Stream, text: bytes) -> None:
        self.next: dict[int, _Place] = {}
        self._stream = stream
        self._text = text  # before it
        self._probabilities: list[float] = []

    @property
    def probabilities(self) -> list[float]:
        """Of the next byte: 256."""
        if not self._probabilities:
            logits = self._stream.logits()
            greatest = max(logits)
            weights = [exp(value - greatest) for value in logits]
            total = sum(weights)
            length, byte = _repeated(self._text)
            part = next((part for least, part in REPEATED if length >= least), 0.0)
            scale = (1 - part) / total
            self._probabilities = [weight * scale for weight in weights]
            self._probabilities[byte] += part
        return self._probabilities

    def read(self, data: bytes) -> _Place:
        """The place after `data`."""
        stream = self._stream.fork()
        stream.feed(data)
        return _Place(stream, (self._text + data)[-HISTORY_BYTES:])

    def after(self, byte: int) -> _Place:
        """The place after one byte, which is computed once."""
        if byte not in self.next:
            self.next[byte] = self.read(bytes([byte]))
        return self.next[byte]


@dataclass(frozen=True)
class _Found:
    """A continuation, and the place after it."""

    text: str
    probability: float  # that the text goes on so, and that its last word ends there
    reached: float  # that the text goes on so
    place: _Place


class Completer:
    """Follows one text and completes it. Usable in a `with` statement.

    threshold: the probability, from above 0 to 1, below which a completion is not offered. Raises
    ValueError. Methods raise EngineError where the interpreter fails."""

    def __init__(self, model: Model, threshold: float = THRESHOLD) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold: found {threshold!r}, wanted a number above 0, up to 1")
        self.threshold = threshold
        self._model = model
        self._text = b""
        self.word = ""  # the unfinished one before the cursor
        self._places: dict[int, _Place] = {}  # by how many bytes of the text are before them
        self._budget = self._ahead = 0  # bytes that may still be read; that were, in this word
        self.follow("")

    def __enter__(self) -> Completer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forgets the text; the model stays open."""
        self._text, self.word = b"", ""
        self._places.clear()

    def follow(self, text: str) -> None:
        """Reads the text before the cursor, as far as it is not what it was: after a key one byte,
        after a deletion nothing or a few, after a jump the last CONTEXT_BYTES."""
        data = text.encode("utf-8", "replace")
        self.word = _last_word(data[-WORD_BYTES - 4 :].decode("utf-8", "ignore"))
        begin = len(data) - len(self.word.encode())  # of the word
        common = _common(self._text, data)
        if any(at not in self._places for at in range(begin, common + 1)):
            common = min(common, begin)  # each place in a word is wanted
        self._places = {at: place for at, place in self._places.items() if at <= common}
        if not self._places or max(self._places) < len(data) - CONTEXT_BYTES:
            self._begin(data)
        self._text = data
        self._advance(begin)
        self._forget(begin)

    def complete(
        self, to: str = "word", count: int = 1, max_bytes: int = MAX_BYTES
    ) -> list[Completion]:
        """The `count` completions that save most keys, as is expected, the best first; none whose
        probability is below the threshold, none of more than `max_bytes` in UTF-8.

        to: "word": the rest of the word before the cursor, or the next one with what stands before
        it; "line": as many words as are probable enough, up to the end of the line. Where the word
        before the cursor may hold a typing error, also that word corrected. Raises ValueError."""
        if to not in UNITS:
            raise ValueError(f"to: found {to!r}, wanted one of {', '.join(UNITS)}")
        if count < 1 or max_bytes < 1:
            raise ValueError(f"count, max_bytes: found {count}, {max_bytes}, wanted 1 or more")
        if not self._places:
            raise ValueError("complete: the completer is closed, wanted an open one")
        meant = self._meant()
        wanted = max(count, CANDIDATES)
        self._budget = STEPS * wanted
        least = self.threshold / len(meant)  # for a word may be meant in several ways
        found: dict[tuple[str, int], float] = {}
        for share, word, place in meant:
            room, ends = max_bytes - len(word.encode()), bool(word)
            rests = self._words(place, share, least, wanted, room, ends) if room >= 0 else []
            if to == "line":
                rests = [self._line(rest, least, room) for rest in rests]
            replaced = len(self.word) if word else 0
            for text, probability in {rest.text: rest.probability for rest in rests}.items():
                key = word + text, replaced
                found[key] = found.get(key, 0.0) + probability
        shown = [
            Completion(text, probability, replaced)
            for (text, replaced), probability in found.items()
            if probability >= self.threshold
        ]
        return sorted(shown, key=_keys_saved, reverse=True)[:count]

    def _begin(self, data: bytes) -> None:
        """Starts anew with the last CONTEXT_BYTES, where a line begins if one does."""
        start = max(0, len(data) - CONTEXT_BYTES)
        if start:
            start = data.find(b"\n", start, start + CONTEXT_BYTES // 2) + 1 or start
        stream = self._model.stream()
        stream.feed(EMPTY_PROMPT)
        before = data[max(0, start - HISTORY_BYTES) : start]
        self._places, self._ahead = {start: _Place(stream, before)}, 0

    def _advance(self, begin: int) -> None:
        """Reads to the end of the text: by pieces, and within the word by bytes."""
        at = max(self._places)
        while at < len(self._text):
            end = at + 1
            if at < begin:
                end = min(begin, at - at % SPARSE_BYTES + SPARSE_BYTES)
            place, piece = self._places[at], self._text[at:end]
            self._places[end] = place.after(piece[0]) if end == at + 1 else place.read(piece)
            at = end

    def _forget(self, begin: int) -> None:
        """Drops what was looked at beside the text before the word, and most places far back."""
        for at, place in self._places.items():
            if at < begin or self._ahead > LOOKAHEAD:
                place.next.clear()
        if self._ahead > LOOKAHEAD:
            self._ahead = 0
        if len(self._places) > PLACES:
            kept: dict[int, _Place] = {}
            dense, last = min(begin, len(self._text) - DENSE_BYTES), -SPARSE_BYTES
            for at, place in self._places.items():
                if at >= dense or at >= last + SPARSE_BYTES:
                    kept[at], last = place, at
            surplus = len(kept) - PLACES * 3 // 4
            far = [at for at in kept if at < dense][: max(0, surplus)]
            self._places = {at: place for at, place in kept.items() if at not in far}

    def _after(self, place: _Place, byte: int) -> _Place | None:
        """The place after one byte; None: the budget is spent. Also bytes that have been read
        before count, so that what is found follows from the text alone."""
        if not self._budget:
            return None
        self._budget -= 1
        self._ahead += byte not in place.next
        return place.after(byte)

    def _words(
        self,
        start: _Place,
        weight: float,
        least: float,
        count: int,
        max_bytes: int,
        ends: bool = False,
        after: bool = False,
    ) -> list[_Found]:
        """The most probable continuations to the end of a word, or of a line that has no more
        words. weight: the probability of being at `start`. least: that of what is found. ends: also
        none, where a word ends. after: a word has ended, and does not go on. Always goes on from
        what is most probable so far, so that the first found is the best."""
        found: list[_Found] = []
        entry = 0  # its number: of equals the first
        heap: list[tuple[float, int, bytes, _Place, _Found | None]] = []

        def push(probability: float, text: bytes, place: _Place, end: _Found | None = None) -> None:
            nonlocal entry
            if probability >= least:
                entry += 1
                heapq.heappush(heap, (-probability, entry, text, place, end))

        push(weight, b"", start)
        while heap and len(found) < count:
            minus, _, text, before, end = heapq.heappop(heap)
            if end:
                found.append(end)
                continue
            place = self._after(before, text[-1]) if text else before
            if place is None:
                break
            reached, probabilities = -minus, place.probabilities
            allowed = _FOLLOWING
            characters = _decoded(text)
            if characters is None:
                continue
            if characters or not text:  # whole
                in_word = _is_word(characters[-1]) if characters else ends
                if after and _is_word(characters[:1] or " "):
                    continue
                if not in_word and any(map(_is_word, characters)):
                    continue  # a word, and a character beyond ASCII after it
                stops = _NO_WORD if in_word else _LINE_ENDS if characters.strip(" \t") else b""
                probability = reached * sum([probabilities[byte] for byte in stops])
                push(probability, text, place, _Found(characters, probability, reached, place))
                allowed = _WORD if in_word else _LINE
            if len(text) < max_bytes:
                bound = least / reached
                for byte, share in enumerate(probabilities):
                    if share >= bound and byte in allowed:
                        push(reached * share, text + bytes([byte]), place)
        return found

    def _line(self, words: _Found, least: float, max_bytes: int) -> _Found:
        """`words` and those after them, as long as they are probable enough."""
        while room := max_bytes - len(words.text.encode()):
            more = self._words(words.place, words.reached, least, 1, room, after=True)
            if not more:
                break
            words = replace(more[0], text=words.text + more[0].text)
        return words

    def _meant(self) -> list[tuple[float, str, _Place]]:
        """What may be meant by the word before the cursor: the probability, the text that is to
        replace it, and the place after that. First "", the word as it is typed; then some that are
        one typing error from it. By a noisy channel: a text is as probable as the model has it,
        times EDIT_PROBABILITY where it is not what was typed."""
        word = self.word.encode()
        here = self._places[len(self._text)]
        if len(self.word) < CORRECTION_CHARACTERS:
            return [(1.0, "", here)]
        begin = len(self._text) - len(word)
        reached = [1.0]  # how probable the word is before each of its bytes, and as typed
        for i, byte in enumerate(word):
            reached.append(reached[-1] * self._places[begin + i].probabilities[byte])
        meant = {word: (reached[-1], here)}
        entry = 0
        heap: list[tuple[float, int, float, bytes, _Place, bool, bytes | None, bytes]] = []

        def push(
            weight: float,
            text: bytes,
            place: _Place,
            unread: bool,  # the last byte of `text`, at `place`
            new: bytes | None,  # of a character that was not typed, as far as it is known
            rest: bytes,  # of what was typed, which is to follow
        ) -> None:
            nonlocal entry
            if weight >= self.threshold * (reached[-1] + weight):  # else it will not be shown
                entry += 1
                hope = weight * USUAL_PROBABILITY ** len(rest)
                heapq.heappush(heap, (-hope, entry, weight, text, place, unread, new, rest))

        characters = [character.encode() for character in self.word]
        cut = 0
        for i, this in enumerate(characters):
            before, after = word[:cut], word[cut + len(this) :]
            start = reached[cut] * EDIT_PROBABILITY, before, self._places[begin + cut], False
            push(*start, None, after)  # one character too many
            push(*start, b"", after)  # a wrong one
            push(*start, b"", this + after)  # one is missing
            other = characters[i + 1] if i + 1 < len(characters) else this
            if other != this:  # two in the wrong order
                push(*start, None, other + this + after[len(other) :])
            cut += len(this)

        self._budget = CORRECTION_STEPS
        while heap and len(meant) <= CORRECTIONS:
            _, _, weight, text, place, unread, new, rest = heapq.heappop(heap)
            if unread:
                further = self._after(place, text[-1])
                if further is None:
                    break
                place = further
            if new:
                character = _decoded(new)
                if character is None or (character and not _is_word(character)):
                    continue
                new = None if character else new
            if new is not None:
                wanted, left = _FOLLOWING if new else _WORD, rest
            elif rest:
                wanted, left = rest[:1], rest[1:]
            else:
                meant.setdefault(text, (weight, place))  # an error may have come about in two ways
                continue
            for byte in wanted:
                share, added = place.probabilities[byte], bytes([byte])
                more = None if new is None else new + added
                push(weight * share, text + added, place, True, more, left)

        total = sum([weight for weight, _ in meant.values()])
        return [
            (weight / total, "" if text == word else text.decode(), place)
            for text, (weight, place) in meant.items()
        ]


def _keys_saved(completion: Completion) -> float:
    """As many as are expected: one takes it, and one deletes each character that it replaces."""
    return completion.probability * (completion.replaced + len(completion.text) - 1)


def _is_word(character: str) -> bool:
    """Whether words are made of it: letters, marks and digits of any script, and _."""
    code = ord(character)
    return code in _ASCII_WORD or (
        code > 127 and not any(first <= code <= last for first, last in _PUNCTUATION)
    )


def _last_word(text: str) -> str:
    """What stands after the last character that is of no word; "": too long to be a word."""
    start = len(text)
    while start and _is_word(text[start - 1]):
        start -= 1
    return text[start:] if len(text[start:].encode()) <= WORD_BYTES else ""


def _repeated(text: bytes) -> tuple[int, int]:
    """The length of the longest end of the text that stood in it before, and the byte that came
    after it there, the last time."""
    length = byte = 0
    for alike in range(REPEATED[-1][0], min(REPEATED[0][0], len(text) - 1) + 1):
        at = text.rfind(text[-alike:], 0, -1)
        if at < 0:
            break
        length, byte = alike, text[at + alike]
    return length, byte


def _decoded(data: bytes) -> str | None:
    """Text; "" as long as its last character is not whole; None: not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return "" if error.reason == "unexpected end of data" else None


def _common(a: bytes, b: bytes) -> int:
    """How many bytes they begin with alike."""
    if b.startswith(a) or a.startswith(b):
        return min(len(a), len(b))
    low, high = 0, min(len(a), len(b))  # alike up to low, not up to high
    one, other = memoryview(a), memoryview(b)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _shown(completion: Completion) -> str:
    replaces = f"[-{completion.replaced}] " if completion.replaced else ""
    text = printable(completion.text) if sys.stdout.isatty() else completion.text
    return f"{completion.probability:.3f} {replaces}{text}"


def _lines() -> Iterator[str]:
    """The texts that the lines of standard input hold."""
    with open_input("-") as file:
        for line in iter(file.readline, b""):
            try:
                text = json.loads(line)
            except (ValueError, RecursionError):
                text = None
            if not isinstance(text, str):
                start = line[:40].decode("utf-8", "replace")
                raise CommandError(f"{STDIN}: found {start!r}, wanted a JSON string in each line")
            yield text


def add_arguments(parser: Parser) -> None:
    """Those of every command that completes: the model, --engine, --threshold."""
    add = parser.add_argument
    add("model", nargs="?", default=SHIPPED_MODEL, help="a .tflite or .onnx artifact")
    add("--engine", choices=ENGINES, default="", help="what computes (default: the best installed)")
    add(
        "--threshold",
        type=number(float, sys.float_info.min, 1, "a number above 0, up to 1"),
        default=THRESHOLD,
        metavar="P",
        help="the least probability of what is shown",
    )


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-complete", __doc__)
    add = parser.add_argument
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--prompt", metavar="TEXT", help="the text (default: standard input)")
    texts.add_argument("--loop", action="store_true", help="answer each line of standard input")
    add_arguments(parser)
    add("--to", choices=UNITS, default=UNITS[0], help="the end of what is completed")
    some = number(int, 1, 1 << 20, "a whole number, 1 or more")
    add("--count", type=some, default=1, metavar="N", help="completions to show at most")
    add("--max-bytes", type=some, default=MAX_BYTES, metavar="N", help="length of one at most")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def _run(arguments: Namespace) -> None:
    write = open_output()
    if arguments.loop:
        texts = _lines()
    elif arguments.prompt is None:
        with open_input("-") as file:
            texts = iter([file.read().decode("utf-8", "replace")])
    else:
        texts = iter([os.fsencode(arguments.prompt).decode("utf-8", "replace")])
    how = arguments.to, arguments.count, arguments.max_bytes
    with load(arguments.model, arguments.engine) as model:
        completer = Completer(model, arguments.threshold)
        for text in texts:
            completer.follow(text)
            found = completer.complete(*how)
            if arguments.json or arguments.loop:
                write(json.dumps({"completions": [asdict(one) for one in found]}) + "\n")
            else:
                write("".join(_shown(one) + "\n" for one in found))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-complete", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())

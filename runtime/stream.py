"""Models and streams: generation from Python.

    from tsm.runtime import Sampling, load

    with load() as model:  # the shipped one, or a path
        stream = model.stream(Sampling(temperature=0.7, seed=1))
        stream.feed("ROMEO:\\n")
        for piece in stream.generate(500, stops="\\n\\n"):
            print(piece, end="")
        stream.save("romeo.tsmstate")  # later: model.load_stream("romeo.tsmstate")

A stream is one text and all that goes on from it: what the model remembers, settings, the number of
the next random draw, the position in a grammar. It can be forked, rewound and saved, to a file or
to bytes; a model computes one of its streams at a time and swaps their states, which are small, in
and out. Leaving `with` gives back memory and files, as being collected does.
"""

from __future__ import annotations

import os
import time
from _thread import allocate_lock  # threading costs a start 1 ms
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from typing import Any

from . import sampling as sample
from . import state as state_file
from .artifact import open_artifact
from .engines import SHIPPED_MODEL, VOCABULARY, Engine, open_engine
from .engines.engine import as_bytes
from .sampling import RECENT_BYTES, GrammarError, Sampling, SamplingError
from .state import StateError
from .text import decode_text

if TYPE_CHECKING:
    from .grammar import Grammar

EMPTY_PROMPT = b"\n"  # what is read where nothing was: the start of a line
SNAPSHOT_BYTES = 256  # between two snapshots of a stream that can be rewound
ASYNC_SECONDS = 0.01  # in a thread at a time: going there and back costs 0.6 ms
_SAVED_BYTES = RECENT_BYTES + 1  # of the text: one drawn byte can be rewound after loading
_HEADER = {"model", "position", "draws", "unread", "sampling", "grammar"}
_OVERHEAD_BYTES = 1 << 22  # of a state file, besides what the model remembers
_READ, _DRAWN = 1, 2  # marks of a byte: a read began with it; it was drawn
_DRAWN_MARK = bytes([_READ | _DRAWN])


def load(
    path: str | os.PathLike[str] = SHIPPED_MODEL,
    engine: str = "",
    threads: int = 1,
    lookahead: bool = False,
    weight_cache: str = "",
) -> Model:
    """Verifies the artifact and opens it; engine: one of engines.ENGINES, by default the best
    that is here; lookahead, weight_cache: as for engines.open_engine. Raises ArtifactError or
    EngineError."""
    return Model(open_engine(open_artifact(path), engine, threads, lookahead, weight_cache))


def _some(pieces: Iterator[str]) -> str | None:
    """The next piece, and what else comes within ASYNC_SECONDS; None: nothing more."""
    end, text = time.perf_counter() + ASYNC_SECONDS, next(pieces, None)
    while text is not None and time.perf_counter() < end:
        more = next(pieces, None)
        if more is None:
            break
        text += more
    return text


def _listed(one_or_more: Any) -> list[Any]:
    """A text or an expression alone is a list of one."""
    alone = isinstance(one_or_more, (str, bytes)) or hasattr(one_or_more, "search")
    return [one_or_more] if alone else list(one_or_more)


def _checked_stop(stop: Any) -> str:
    if not (isinstance(stop, str) and stop):
        raise SamplingError(f"stops: found {stop!r}, wanted text of one character or more")
    return stop


def _compiled(regex: Any) -> re.Pattern[str]:
    import re  # not for those who have none

    try:
        pattern = re.compile(regex)
        if isinstance(pattern.pattern, bytes):
            raise SamplingError(f"regexes: found {regex!r}, wanted an expression of text")
        if pattern.match(""):
            raise SamplingError(f"regexes: found {regex!r}, wanted one that no empty text matches")
        return pattern
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise SamplingError(f"regexes: found {regex!r}, wanted an expression ({error})") from None


class _Memory:
    """What the model remembers of a stream. It belongs to both, so that neither holds the other: a
    model and its streams are collected as soon as they are dropped."""

    state: dict[str, bytes] | None = None  # None: fresh; void while the engine has it


class Model:
    """An engine, and which stream's state it holds. Usable in a `with` statement."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._lock = allocate_lock()
        self._held: _Memory | None = None  # of the stream whose state the engine has

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back the memory and the file of the model, of which nothing can be computed then;
        waits for what is being computed."""
        with self._lock:
            self._release()  # a stream of it can still be saved
            self.engine.close()

    def _release(self) -> None:
        """Gives the stream whose state the engine has its state back."""
        if self._held:
            self._held.state, self._held = self.engine.get_state(), None

    def stream(
        self, sampling: Sampling | None = None, *, grammar: Grammar | None = None, rewind: int = 0
    ) -> Stream:
        """A fresh text. `rewind`: by how many bytes it can be rewound, at a snapshot of the state
        for every 256 of them. Raises StateError or GrammarError."""
        if rewind < 0:
            raise StateError(f"rewind: found {rewind}, wanted 0 or more bytes")
        if grammar is not None and not hasattr(grammar, "consume"):
            kind = type(grammar).__name__
            raise GrammarError(f"grammar: found a value of type {kind}, wanted a Grammar of it")
        return Stream(self, sampling or Sampling(), grammar, rewind)

    def load_stream(
        self, source: str | os.PathLike[str] | bytes | bytearray | memoryview, *, rewind: int = 0
    ) -> Stream:
        """The stream that `Stream.save` wrote to a path, or that `Stream.to_bytes` returned, to
        the bit. Raises StateError or GrammarError."""
        if isinstance(source, (bytes, bytearray, memoryview)):
            name, data = "state", bytes(source)
        else:
            size_bytes = sum(self.engine._state_bytes().values())
            name, data = os.fspath(source), state_file.read(source, size_bytes + _OVERHEAD_BYTES)
        try:
            return Stream._unpack(self, data, rewind)
        except GrammarError:
            raise
        except (StateError, SamplingError) as error:
            raise StateError(f"{name}: {error}") from None


class Stream:
    """A text and its state; made by `Model.stream`. Methods raise EngineError where the
    interpreter fails."""

    def __init__(
        self, model: Model, sampling: Sampling, grammar: Grammar | None, rewind: int
    ) -> None:
        self.sampling, self.grammar = sampling, grammar
        self.position = 0  # bytes read and drawn
        self.draws = 0  # bytes drawn: the index of the next random number
        # How the last generation ended: "length", "stop", "grammar" or "cancelled".
        self.finish_reason = ""
        self._model = model
        self._memory = _Memory()
        self._logits: array[float] | None = None  # of the byte after those read
        self._unread = b""  # the last byte, where it was drawn and nothing came after it
        self._cancelled = self._closed = False
        self._text = bytearray()  # the last bytes, RECENT_BYTES and as far as can be rewound
        self._marks = bytearray()  # of each byte of _text, where it can be rewound
        self._rewind = rewind
        self._snapshots: list[tuple[int, dict[str, bytes], array[float] | None]] = []
        # Read at once: a multiple of the block, so that reads are cut alike wherever they end.
        self._stride = model.engine.block_tokens * (4 if rewind else 64)

    @property
    def recent(self) -> bytes:
        """The last bytes of the text, up to RECENT_BYTES."""
        return bytes(self._text[-RECENT_BYTES:])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives back what the stream remembers; it cannot be used then. The model stays open."""
        with self._model._lock:
            if self._model._held is self._memory:
                self._model._held = None
            self._memory.state, self._logits, self._unread = None, None, b""
            self._snapshots.clear()
            self._closed = True

    def feed(self, text: str | bytes | bytearray | memoryview) -> None:
        """Reads a prompt, or more of it; a grammar starts anew after it."""
        self._feed(text, self._model.engine.feed)

    def logits_of(self, text: str | bytes | bytearray | memoryview) -> array[float]:
        """Reads as `feed` does, and returns the logits after each byte: 256 a byte, row after
        row."""
        rows = array("f")

        def read(piece: bytes) -> array[float]:
            rows.extend(self._model.engine.logits_of(piece))
            return rows[-VOCABULARY:]

        self._feed(text, read)
        return rows

    def _feed(self, text: Any, read: Callable[[bytes], array[float]]) -> None:
        data = text.encode() if isinstance(text, str) else as_bytes(text)
        if not data:
            return
        with self._model._lock:
            self._enter()
            self._read_drawn()
            for start in range(0, len(data), self._stride):
                piece = data[start : start + self._stride]
                self._read(piece, self.position, read)
                self._record(piece, bytes([_READ * (start == 0)]) + bytes(len(piece) - 1))
            if self.grammar:
                self.grammar.rewind(len(self.grammar.consumed))

    def logits(self) -> array[float]:
        """Of the next byte: 256, as the model has them."""
        if not self.position:
            self.feed(EMPTY_PROMPT)
        with self._model._lock:
            self._enter()
            self._read_drawn()
            assert self._logits
            return self._logits

    def drawn_from(self) -> array[float]:
        """The logits that the last byte was drawn from. Raises StateError where it was read."""
        if not (self._unread and self._logits):
            raise StateError("logits: the last byte was not drawn, wanted one that was")
        return self._logits

    def draw(self) -> int | None:
        """Draws the next byte. None: the grammar's text has ended."""
        logits, sampling, grammar = self.logits(), self.sampling, self.grammar
        if grammar and grammar.ended:
            return None
        adjust = sampling.adjust(logits, self._text)
        if grammar:
            adjust = grammar.mask(adjust)
        byte = self._model.engine.draw(
            logits,
            adjust,
            sampling.temperature,
            sampling.top_k,
            sampling.typical_p,
            sampling.top_p,
            sampling.min_p,
            sample.uniform(sampling.seed, self.draws),
        )
        if grammar and not grammar.consume(byte):
            return None
        self._unread = bytes([byte])
        self._record(self._unread, _DRAWN_MARK)
        self.draws += 1
        return byte

    def generate_bytes(
        self, count: int | None = None, *, observe: Callable[[int], object] | None = None
    ) -> Iterator[int]:
        """Yields bytes as they are drawn, `count` at most; None: until cancelled or ended.
        `observe` is called with each, as long as `drawn_from` tells of it."""
        self.finish_reason = ""
        end = None if count is None else self.draws + count
        try:
            while end is None or self.draws < end:
                byte = None if self._cancelled else self.draw()
                if byte is None:
                    self.finish_reason = "cancelled" if self._cancelled else "grammar"
                    return
                if observe:
                    observe(byte)
                yield byte
            # A grammar's text that happens to be whole here has ended, too.
            self.finish_reason = "grammar" if self.grammar and self.grammar.ended else "length"
        finally:
            self._cancelled = False

    def generate(
        self,
        count: int | None = None,
        *,
        stops: str | Sequence[str] = (),
        regexes: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] = (),
        observe: Callable[[int], object] | None = None,
        errors: str = "replace",
    ) -> Iterator[str]:
        """Yields text as it comes, of `count` bytes at most; it ends before any of the strings
        `stops` and any match of `regexes` (text.py), which the stream has drawn, too. `errors`:
        what becomes of bytes that are not UTF-8, as for bytes.decode."""
        strings = list(map(_checked_stop, _listed(stops)))
        patterns = list(map(_compiled, _listed(regexes)))
        source = self.generate_bytes(count, observe=observe)
        if (yield from decode_text(source, strings, patterns, errors)):
            self.finish_reason = "stop"

    async def generate_async(
        self,
        count: int | None = None,
        *,
        stops: str | Sequence[str] = (),
        regexes: str | re.Pattern[str] | Sequence[str | re.Pattern[str]] = (),
    ) -> AsyncIterator[str]:
        """`generate` in a thread, whose text comes every ASYNC_SECONDS at most; a cancelled task
        ends it within one byte."""
        import asyncio

        pieces = self.generate(count, stops=stops, regexes=regexes)
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(_some, pieces))
            try:
                piece = await asyncio.shield(step)
            except asyncio.CancelledError:
                self.cancel()
                await asyncio.wait([step])  # so that nothing of it runs on unseen
                raise
            if piece is None:
                return
            yield piece

    def cancel(self) -> None:
        """Ends the running generation, else the next one, before its next byte; from any thread
        or signal handler."""
        self._cancelled = True

    def fork(self) -> Stream:
        """A stream of its own that goes on from the same place."""
        with self._model._lock:
            self._check_open()
            grammar = self.grammar.copy() if self.grammar else None
            other = Stream(self._model, self.sampling, grammar, self._rewind)
            other.position, other.draws, other._unread = self.position, self.draws, self._unread
            other._memory.state, other._logits = self._get_state(), self._logits
            other._text[:], other._marks[:] = self._text, self._marks
            other._snapshots[:] = self._snapshots
            return other

    def rewind(self, count: int) -> None:
        """Forgets the last `count` bytes, to the bit as if they had never been, random draws
        included. Raises StateError where it was not made to go back so far."""
        goal = self.position - count
        if count < 0:
            raise StateError(f"rewind: found {count}, wanted 0 or more bytes")
        if count == 0:
            return
        earlier = [snapshot for snapshot in self._snapshots if snapshot[0] <= goal]
        if not earlier:
            most = self.position - self._snapshots[0][0] if self._snapshots else 0
            raise StateError(f"rewind: {count} bytes asked, {most} kept, wanted a larger rewind=")
        with self._model._lock:
            start, state, logits = earlier[-1]
            origin = self.position - len(self._text)
            text = bytes(self._text[start - origin : goal - origin])
            marks = bytes(self._marks[start - origin : goal - origin])
            self.draws -= sum(mark & _DRAWN > 0 for mark in self._marks[goal - origin :])
            del self._text[start - origin :], self._marks[start - origin :]
            self.position, self._unread, self._snapshots = start, b"", earlier
            self._enter()
            self._model.engine.set_state(state)
            self._logits = logits
            begun = [i for i, mark in enumerate(marks) if mark & _READ and i]
            for a, b in zip([0, *begun], [*begun, len(text)]):
                if a < b:
                    self._read(text[a:b], self.position)
                    self._record(text[a:b], marks[a:b])
            if self.grammar:
                self.grammar.rewind(count)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all that goes on from here to a file. Raises StateError."""
        state_file.write(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """All that goes on from here, as `save` writes it; for `Model.load_stream`."""
        grammar, engine = self.grammar, self._model.engine
        with self._model._lock:
            self._check_open()
            header = {
                "model": engine.artifact.sha256,
                "position": self.position,
                "draws": self.draws,
                "unread": len(self._unread),
                "sampling": self.sampling.settings(),
                "grammar": grammar and [grammar.kind, grammar.source, grammar.ended],
            }
            parts = [bytes(self._text[-_SAVED_BYTES:]), bytes(grammar.consumed if grammar else b"")]
            state = self._get_state()
            if self.position and state and self._logits:  # else fresh
                parts += [self._logits.tobytes(), *(state[name] for name in engine.artifact.state)]
            return state_file.pack(header, parts)

    @classmethod
    def _unpack(cls, model: Model, data: bytes, rewind: int) -> Stream:
        header, parts = state_file.unpack(data)
        if header.keys() != _HEADER:
            raise StateError(f"header keys {sorted(header)}, wanted {sorted(_HEADER)}")
        wanted = model.engine.artifact.sha256
        if header["model"] != wanted:
            raise StateError(f"a state of the model {str(header['model'])[:64]!r}, wanted {wanted}")
        position, draws, unread = (header[n] for n in ("position", "draws", "unread"))
        sizes = model.engine._state_bytes()
        lengths = [len(part) for part in parts]
        if not (
            len(parts) >= 2
            and all(type(n) is int and n >= 0 for n in (position, draws, unread))
            and draws <= position
            and unread <= min(draws, 1)
            and min(position, RECENT_BYTES) <= lengths[0] <= min(position, _SAVED_BYTES)
            and lengths[2:] == ([4 * VOCABULARY, *sizes.values()] if position else [])
        ):
            raise StateError("its counts do not agree with its parts, wanted a whole state")
        settings = header["sampling"]
        try:
            bias = {int(byte): value for byte, value in settings.pop("logit_bias").items()}
            sampling = Sampling(**settings, logit_bias=bias)
            grammar = cls._grammar(header["grammar"], parts[1])
        except (StateError, SamplingError):
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateError(f"its settings cannot be read ({str(error)!r})") from None
        stream = cls(model, sampling, grammar, rewind)
        stream.position, stream.draws = position, draws
        stream._text += parts[0]
        stream._unread = parts[0][lengths[0] - unread :]
        if rewind:
            stream._marks += bytes(lengths[0] - unread) + _DRAWN_MARK * unread
        if position:
            stream._logits = array("f", parts[2])
            stream._memory.state = dict(zip(sizes, parts[3:]))
        return stream

    @staticmethod
    def _grammar(stored: Any, consumed: bytes) -> Grammar | None:
        if stored is None:
            return None
        from .grammar import Grammar

        kind, source, ended = stored if isinstance(stored, list) and len(stored) == 3 else [""] * 3
        grammar = Grammar(str(kind), str(source), consumed)
        if grammar.consumed != consumed:
            raise StateError("its text is not one of its grammar, wanted one")
        grammar.ended = grammar.ended or bool(ended)
        return grammar

    def _enter(self) -> None:
        """Puts this stream's state into the engine, and another's into that stream."""
        self._check_open()
        model = self._model
        if model._held is self._memory:
            return
        model._release()
        if self._memory.state is None:
            model.engine.reset()
        else:
            model.engine.set_state(self._memory.state)
        model._held = self._memory

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("stream: closed, wanted an open one")

    def _get_state(self) -> dict[str, bytes] | None:
        held = self._model._held is self._memory
        return self._model.engine.get_state() if held else self._memory.state

    def _read_drawn(self) -> None:
        if self._unread:
            self._read(self._unread, self.position - 1)
            self._unread = b""

    def _read(
        self,
        data: bytes,
        position: int,
        read: Callable[[bytes], array[float]] | None = None,
    ) -> None:
        """Moves the engine on by `data`, which begins at `position`; read: in place of `feed`."""
        if self._rewind:
            snapshots = self._snapshots
            if not snapshots or position >= snapshots[-1][0] + SNAPSHOT_BYTES:
                snapshots.append((position, self._model.engine.get_state(), self._logits))
            while len(snapshots) > 1 and snapshots[1][0] <= position - self._rewind:
                del snapshots[0]
        self._logits = (read or self._model.engine.feed)(data)

    def _record(self, data: bytes, marks: bytes) -> None:
        self._text += data
        self.position += len(data)
        if self._rewind:
            self._marks += marks
        limit = RECENT_BYTES + self._rewind + SNAPSHOT_BYTES + 2 * self._stride
        if len(self._text) > 2 * limit:
            del self._text[:-limit], self._marks[:-limit]

"""What is computed for one request: texts after prompts, byte by byte, in turns."""

from __future__ import annotations

import codecs
import dataclasses
import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

from tsm.runtime import Grammar, Model, Sampling, Stream
from tsm.runtime.sampling import VOCABULARY, log_probabilities
from tsm.runtime.text import decode_text

from .scheduler import Job

# A turn of a stream. To go from one stream to the next costs less than a byte does.
TURN_BYTES, TURN_READ_BYTES = 16, 64


class Row(NamedTuple):
    """A byte of a text, its log-probability in nats, None where nothing came before it, and the
    likeliest in its place."""

    byte: int
    logprob: float | None
    top: list[tuple[int, float]]


class Piece(NamedTuple):
    """More of the text of a choice; with `finish`, its end."""

    index: int
    data: bytes
    rows: list[Row]
    finish: str | None = None  # "stop" or "length"
    unfinished: bytes = b""  # the first bytes of a character, which are no part of the text
    state: bytes | None = None


class PromptRead(NamedTuple):
    """The state after the first `count` bytes of a prompt, which read on from there."""

    prompt: bytes
    count: int
    state: bytes


class Totals(NamedTuple):
    """At the end of a request."""

    prompt_bytes: int
    cached_bytes: int
    drawn_bytes: int


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a prompt is read on from: a state, and how much of the prompt it has read."""

    state: bytes
    read: int


@dataclasses.dataclass(frozen=True)
class Task:
    """A request, checked. `sampling`: the settings that were given; `starts`: by prompt, what the
    cache had; `keep`: after how many bytes of a prompt its state is worth keeping."""

    prompts: list[bytes]
    sampling: dict[str, Any]
    max_bytes: int
    n: int = 1
    best_of: int = 1
    stops: tuple[str, ...] = ()
    echo: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    resumed: Stream | None = None
    unfinished: bytes = b""  # of the resumed text's last character, which the new text completes
    return_state: bool = False
    starts: tuple[Start | None, ...] = ()
    keep: Callable[[bytes], int] = lambda prompt: 0

    def started(self, starts: tuple[Start | None, ...], keep: Callable[[bytes], int]) -> Task:
        return dataclasses.replace(self, starts=starts, keep=keep)


def work(model: Model, task: Task) -> Callable[[Job], Iterator[None]]:
    """For Scheduler.submit: events are Piece, PromptRead and, last, Totals."""
    return lambda job: _complete(model, task, job)


def _complete(model: Model, task: Task, job: Job) -> Iterator[None]:
    for number, prompt in enumerate(task.prompts):
        stream = _opened(model, task, number)
        rows: list[Row] = []
        whole = yield from _read(stream, task, number, rows, job)
        if task.grammar:  # not before: what is kept of the prompt is not to have it
            stream.grammar = task.grammar.copy()
        candidates = []
        for sample in range(task.best_of):
            if sample or number:
                yield
            text = stream.fork() if task.best_of > 1 else stream
            text.sampling = text.sampling.replace(seed=stream.sampling.seed + sample)
            index, pieces = number * task.n + sample, []
            emit = job.emit if task.best_of == task.n else pieces.append
            if task.echo:
                emit(Piece(index, prompt, rows))
            yield from _generate(text, task, index, emit, job, task.return_state and whole)
            candidates.append(pieces)
        if task.best_of > task.n:
            drawn_pieces = [pieces[task.echo :] for pieces in candidates]
            means = list(map(_mean_logprob, drawn_pieces))
            best = heapq.nlargest(task.n, range(task.best_of), key=means.__getitem__)
            for place, pieces in enumerate(candidates[sample] for sample in best):
                for piece in pieces:
                    job.emit(piece._replace(index=number * task.n + place))
    cached = sum(start.read for start in task.starts if start)
    job.emit(Totals(sum(map(len, task.prompts)), cached, job.drawn_bytes))


def _opened(model: Model, task: Task, number: int) -> Stream:
    """The stream that the prompt of this number goes on from."""
    start = task.starts[number] if task.starts else None
    if task.resumed is not None:
        stream = task.resumed
        stream.sampling = stream.sampling.replace(**task.sampling)
    elif start:
        stream = model.load_stream(start.state)
        stream.sampling = Sampling(**task.sampling)
    else:
        stream = model.stream(Sampling(**task.sampling))
    return stream


def _read(
    stream: Stream, task: Task, number: int, rows: list[Row], job: Job
) -> Generator[None, None, bool]:
    """Reads the prompt, and fills `rows` where they are wanted. Returns whether it was read whole:
    the time was enough."""
    prompt = task.prompts[number]
    start = task.starts[number] if task.starts else None
    keep = task.keep(prompt)
    for at in range(start.read if start else 0, len(prompt), TURN_READ_BYTES):
        piece = prompt[at : at + TURN_READ_BYTES]
        if task.echo and task.logprobs is not None:
            before = stream.logits() if stream.position else None
            logits = stream.logits_of(piece)
            for place, byte in enumerate(piece):
                rows.append(_row(byte, before, task.logprobs))
                before = logits[place * VOCABULARY : (place + 1) * VOCABULARY]
        else:
            stream.feed(piece)
        if at + len(piece) == keep:
            job.emit(PromptRead(prompt, keep, stream.to_bytes()))
        if at + len(piece) < len(prompt):
            if job.cut:
                return False
            yield
    return True


def _generate(
    stream: Stream,
    task: Task,
    index: int,
    emit: Callable[[Piece], object],
    job: Job,
    return_state: bool,
) -> Iterator[None]:
    """Draws one text, TURN_BYTES at a time."""
    rows: list[Row] = []
    ranked = task.best_of > task.n

    def observe(byte: int) -> None:
        job.drawn_bytes += 1
        if task.logprobs is not None or ranked:
            rows.append(_row(byte, stream.drawn_from(), task.logprobs or 0))

    drawn = stream.generate_bytes(task.max_bytes, observe=observe)
    source = itertools.chain(task.unfinished, drawn)
    text = decode_text(source, task.stops, (), "surrogateescape")
    data, turn, stopped = bytearray(), stream.draws, False
    ahead = len(task.unfinished)  # bytes that an earlier request has drawn, with their rows
    while True:
        if job.cut:
            stream.cancel()  # which the next byte sees
        try:
            data += next(text).encode("utf-8", "surrogateescape")
        except StopIteration as end:
            stopped = end.value
            break
        if stream.draws - turn >= TURN_BYTES:
            count = max(len(data) - ahead, 0)
            ahead = max(ahead - len(data), 0)
            emit(Piece(index, bytes(data), rows[:count]))
            del rows[:count]
            data.clear()
            turn = stream.draws
            yield
    reason = "stop" if stopped or stream.finish_reason == "grammar" else "length"
    count = max(len(data) - ahead, 0)
    rest, state = b"", None
    if return_state:
        if reason == "length":
            rest = unfinished_character(data)
            del data[len(data) - len(rest) :]
        state = stream.to_bytes()
    emit(Piece(index, bytes(data), rows[:count], reason, rest, state))


def unfinished_character(data: bytes | bytearray) -> bytes:
    """The first bytes of a character at the end of `data`, if it ends in such."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(data[-3:]))
    return decoder.getstate()[0]


def _row(byte: int, logits: array[float] | None, count: int) -> Row:
    if logits is None:
        return Row(byte, None, [])
    values = log_probabilities(logits)
    likeliest = heapq.nlargest(count, range(VOCABULARY), key=values.__getitem__)
    return Row(byte, values[byte], [(other, values[other]) for other in likeliest])


def _mean_logprob(pieces: list[Piece]) -> float:
    values = [row.logprob for piece in pieces for row in piece.rows if row.logprob is not None]
    return math.fsum(values) / len(values) if values else -math.inf

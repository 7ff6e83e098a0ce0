"""What is computed for a request, as one JSON answer or as server-sent events."""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import UNSET, UnsetType

from tsm.runtime import EngineError, SamplingError, StateError

from . import messages, metrics
from .completion import Piece, PromptRead, Row, Totals
from .messages import ApiError, Usage, encode, token
from .scheduler import Job, Scheduler

LOG = logging.getLogger("tsm_server")


class Text:
    """The text of one choice as it comes: whole characters, and where in them each byte lies.

    unfinished: what an earlier request has drawn of its first character.
    """

    def __init__(self, unfinished: bytes) -> None:
        self.parts: list[str] = []
        self.rows: list[Row] = []
        self.offsets: list[int] = []
        self.finish, self.state = None, UNSET
        self._shown = codecs.getincrementaldecoder("utf-8")("replace")
        self._placed = codecs.getincrementaldecoder("utf-8")("replace")
        self._placed.decode(unfinished)
        self._offset = 0

    def add(self, piece: Piece) -> tuple[str, list[int]]:
        """The characters that are whole now, and the offset in them of each row's byte."""
        offsets = []
        for row in piece.rows:
            offsets.append(self._offset)
            self._offset += len(self._placed.decode(bytes([row.byte])))
        return self._shown.decode(piece.data, piece.finish is not None), offsets


class Form(ABC):
    """How an API spells an answer. One for each request.

    seal: makes the state of a text that a client keeps of the bytes of its unfinished character,
    and its stream's.
    """

    prefix = ""  # of an answer's id

    def __init__(
        self,
        model_name: str,
        fingerprint: str,
        *,
        logprobs: int | None,
        include_usage: bool,
        unfinished: bytes,
        seal: Callable[[bytes, bytes], str],
    ) -> None:
        self.id = f"{self.prefix}-{os.urandom(12).hex()}"
        self._common = {
            "id": self.id,
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }
        self._logprobs, self.include_usage = logprobs, include_usage
        self._unfinished, self._seal = unfinished, seal
        self._texts: dict[int, Text] = {}

    def _text(self, index: int) -> Text:
        return self._texts.setdefault(index, Text(self._unfinished))

    def _state(self, piece: Piece) -> str | UnsetType:
        return UNSET if piece.state is None else self._seal(piece.unfinished, piece.state)

    def _usage(self) -> None | UnsetType:
        return None if self.include_usage else UNSET

    def collect(self, piece: Piece) -> None:
        """Keeps a piece for `whole`."""
        text = self._text(piece.index)
        part, offsets = text.add(piece)
        text.parts.append(part)
        if self._logprobs is not None:
            text.rows += piece.rows
            text.offsets += offsets
        text.finish = piece.finish or text.finish
        if piece.finish:
            text.state = self._state(piece)

    @abstractmethod
    def whole(self, totals: Totals) -> bytes:
        """The answer that is not streamed, of all pieces that were collected."""

    @abstractmethod
    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """The events of a stream that a piece makes."""

    @abstractmethod
    def usage_chunk(self, totals: Totals) -> bytes:
        """The last event of a stream where usage is asked for."""


def usage(totals: Totals) -> Usage:
    prompt, cached, drawn = totals
    return Usage(prompt, drawn, prompt + drawn, messages.PromptDetails(cached))


class CompletionForm(Form):
    prefix = "cmpl"

    def _logprobs_of(self, rows: list[Row], offsets: list[int]) -> messages.Logprobs | None:
        if self._logprobs is None:
            return None
        found = messages.Logprobs([], [], [], [])
        for row, offset in zip(rows, offsets, strict=True):
            found.tokens.append(token(row.byte))
            found.token_logprobs.append(row.logprob)
            # With the byte itself, as OpenAI has it.
            top = None
            if row.logprob is not None and self._logprobs:
                top = {token(byte): value for byte, value in row.top}
                top[token(row.byte)] = row.logprob
            found.top_logprobs.append(top)
            found.text_offset.append(offset)
        return found

    def _answer(self, choices: list[messages.Choice], usage: Any) -> bytes:
        return encode(
            messages.Completion(
                object="text_completion", choices=choices, usage=usage, **self._common
            )
        )

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        part, offsets = self._text(piece.index).add(piece)
        logprobs = self._logprobs_of(piece.rows, offsets)
        choice = messages.Choice(part, piece.index, logprobs, piece.finish, self._state(piece))
        if part or piece.rows or piece.finish:
            yield self._answer([choice], self._usage())

    def usage_chunk(self, totals: Totals) -> bytes:
        return self._answer([], usage(totals))

    def whole(self, totals: Totals) -> bytes:
        choices = [
            messages.Choice(
                "".join(text.parts),
                index,
                self._logprobs_of(text.rows, text.offsets),
                text.finish,
                text.state,
            )
            for index, text in sorted(self._texts.items())
        ]
        return self._answer(choices, usage(totals))


class ChatForm(Form):
    prefix = "chatcmpl"

    def _logprobs_of(self, rows: list[Row]) -> messages.ChatLogprobs | None:
        if self._logprobs is None:
            return None
        return messages.ChatLogprobs(
            [
                messages.TokenLogprob(
                    token(row.byte),
                    row.logprob,
                    [row.byte],
                    [messages.TopLogprob(token(byte), value, [byte]) for byte, value in row.top],
                )
                for row in rows
                if row.logprob is not None
            ]
        )

    def _chunk(self, choices: list[messages.ChunkChoice], usage: Any) -> bytes:
        chunk = messages.Chunk(
            object="chat.completion.chunk", choices=choices, usage=usage, **self._common
        )
        return encode(chunk)

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        if piece.index not in self._texts:
            delta = messages.Delta("assistant", "")
            choice = messages.ChunkChoice(piece.index, delta, None, None)
            yield self._chunk([choice], self._usage())
        part, _ = self._text(piece.index).add(piece)
        delta = messages.Delta(content=part or UNSET)
        logprobs = self._logprobs_of(piece.rows) if piece.rows else None
        state = self._state(piece)
        if part or piece.rows or piece.finish:
            choice = messages.ChunkChoice(piece.index, delta, logprobs, piece.finish, state)
            yield self._chunk([choice], self._usage())

    def usage_chunk(self, totals: Totals) -> bytes:
        return self._chunk([], usage(totals))

    def whole(self, totals: Totals) -> bytes:
        choices = [
            messages.ChatChoice(
                index,
                messages.Answer("assistant", "".join(text.parts)),
                self._logprobs_of(text.rows),
                text.finish,
                text.state,
            )
            for index, text in sorted(self._texts.items())
        ]
        chat = messages.Chat(
            object="chat.completion", choices=choices, usage=usage(totals), **self._common
        )
        return encode(chat)


class Reply:
    """An ASGI response: has the work done, and ends it within a byte where the client leaves."""

    background = None  # which Starlette looks for

    def __init__(
        self,
        scheduler: Scheduler,
        work: Callable[[Job], Iterator[None]],
        form: Form,
        *,
        stream: bool,
        seconds: float,
        keep: Callable[[PromptRead], None],
    ) -> None:
        self._scheduler, self._work, self._form = scheduler, work, form
        self._stream, self._seconds, self._keep = stream, seconds, keep

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        job = self._scheduler.submit(self._work)
        started, loop = time.perf_counter(), asyncio.get_running_loop()
        watcher = asyncio.create_task(self._watch(receive, job))
        timer = loop.call_later(self._seconds, self._scheduler.cut, job)
        try:
            await (self._send_events if self._stream else self._send_whole)(job, send, started)
            if job.gone:
                scope["state"]["left"] = True
                metrics.ABANDONED.inc()
            else:
                metrics.REQUEST_SECONDS.observe(time.perf_counter() - started)
        finally:
            timer.cancel()
            watcher.cancel()
            self._scheduler.leave(job)

    async def _watch(self, receive: Any, job: Job) -> None:
        """Starlette's is_disconnected does not see a client leave that is not sent anything."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._scheduler.leave(job)

    async def _pieces(self, job: Job, started: float):
        """Lists of pieces; the last has the totals at its end."""
        first = True
        async for some in job.events():
            pieces = []
            for event in some:
                if isinstance(event, PromptRead):
                    self._keep(event)
                    continue
                pieces.append(event)
                if isinstance(event, Totals):
                    metrics.PROMPT_BYTES.inc(event.prompt_bytes)
                    metrics.CACHED_BYTES.inc(event.cached_bytes)
            if pieces:
                if first:
                    metrics.FIRST_SECONDS.observe(time.perf_counter() - started)
                    first = False
                yield pieces

    async def _send_whole(self, job: Job, send: Any, started: float) -> None:
        try:
            async for pieces in self._pieces(job, started):
                for piece in pieces:
                    if isinstance(piece, Totals):
                        body = self._form.whole(piece)
                        headers = [
                            (b"content-type", b"application/json"),
                            (b"content-length", str(len(body)).encode()),
                        ]
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": headers}
                        )
                        await send({"type": "http.response.body", "body": body})
                    else:
                        self._form.collect(piece)
        except Exception as error:
            raise as_api_error(error) from error

    async def _send_events(self, job: Job, send: Any, started: float) -> None:
        begun = False
        try:
            async for pieces in self._pieces(job, started):
                frames = bytearray()
                ended = False
                for piece in pieces:
                    if isinstance(piece, Totals):
                        ended = True
                        if self._form.include_usage:
                            frames += _frame(self._form.usage_chunk(piece))
                        frames += _frame(b"[DONE]")
                    else:
                        for chunk in self._form.chunks(piece):
                            frames += _frame(chunk)
                if not begun:
                    begun = True
                    await send(_EVENTS)
                await send(
                    {"type": "http.response.body", "body": bytes(frames), "more_body": not ended}
                )
        except Exception as error:
            error = as_api_error(error)
            if not begun:
                raise error from None
            await send({"type": "http.response.body", "body": _frame(error.body())})


_EVENTS = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx passes each event on
    ],
}


def _frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of an exception of the work."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, StateError):
        return ApiError(400, f"The state cannot be used: {error}", param="state")
    if isinstance(error, SamplingError):  # a grammar's too
        return ApiError(400, str(error), param=str(error).partition(":")[0])
    message = str(error) if isinstance(error, EngineError) else "Internal error"
    LOG.error("%s", message, exc_info=error)
    return ApiError(500, message, kind="server_error")

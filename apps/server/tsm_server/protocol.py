"""HTTP on a socket, with the limits that uvicorn's h11 lacks: on the time that headers and bodies
take, on a client that does not read, and on the number of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .messages import ApiError
from .settings import Settings

READ_BYTES = 8192  # at once, before others have their turn: 30 ms, in chunks of a byte each
DISCARD_SECONDS = 5  # beyond body_seconds, for what is left of a body that was refused


def limited(settings: Settings) -> type[H11Protocol]:
    """The protocol with the limits of these settings."""

    class LimitedProtocol(H11Protocol):
        _sending: asyncio.TimerHandle | None = None  # until the client has sent what it began
        _reading: asyncio.TimerHandle | None = None  # until it reads again
        _awaited: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.max_size = READ_BYTES  # asyncio's own is 256 KB
            if len(self.connections) > settings.connections:
                transport.abort()
                return
            self._await(h11.IDLE)

        def connection_lost(self, exc: Exception | None) -> None:
            self._await(None)
            self.resume_writing()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            state = self.conn.their_state
            self._await(state if state in (h11.IDLE, h11.SEND_BODY) else None)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE:
                self._await(None)  # until more comes, which the timer of keep-alive limits

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            # What the client has not read by now would hold the socket open for ever.
            self.loop.call_later(settings.read_seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            if not self._reading:
                self._reading = self.loop.call_later(settings.read_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading:
                self._reading.cancel()
                self._reading = None

        def send_400_response(self, msg: str) -> None:
            """A request that is no HTTP."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.abort()  # in the middle of an answer
                return
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            body = ApiError(400, msg).body()
            headers.append((b"content-length", str(len(body)).encode()))
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
            self.transport.close()

        def _await(self, state: Any) -> None:
            """Gives the client its time, from now on, to send what it has begun: h11.IDLE, a head;
            h11.SEND_BODY, a body; None, nothing."""
            if self._sending and (state is not self._awaited):
                self._sending.cancel()
                self._sending = None
            self._awaited = state
            if state is not None and not self._sending:
                body_seconds = settings.body_seconds + DISCARD_SECONDS
                seconds = settings.header_seconds if state is h11.IDLE else body_seconds
                self._sending = self.loop.call_later(seconds, self.transport.abort)

    return LimitedProtocol

"""Who computes when. Requests take turns of a few bytes, so that a long one holds up nobody.

The turns are in the event loop, between what comes from sockets: a thread beside it would hand over
the interpreter's lock several times a byte.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from . import metrics
from .messages import ApiError

# Of the event loop between two turns: what a socket brings goes through as many, from the end of a
# connection to the end of its text, say. A pass takes 2 us.
PASSES = 4
RETRY = {"retry-after": "1"}


def shutting_down() -> ApiError:
    return ApiError(503, "Shutting down", kind="server_error", headers=RETRY)


class Job:
    """The work of one request, and the events that come of it.

    work: called with the job; each step of what it returns is a turn.
    """

    def __init__(self, work: Callable[[Job], Iterator[None]]) -> None:
        self.cut = False  # to end early, with what there is
        self.gone = False  # nobody waits for it
        self.drawn_bytes = 0
        self._work, self._turns = work, None
        self._events: collections.deque[Any] = collections.deque()
        self._wake = asyncio.Event()

    def emit(self, event: Any) -> None:
        self._events.append(event)

    def turn(self) -> bool:
        """Returns whether there is more to compute."""
        if self.gone:
            return False
        before = self.drawn_bytes
        try:
            if self._turns is None:
                self._turns = self._work(self)
            next(self._turns)
            return True
        except StopIteration:
            self.emit(None)
        except Exception as error:  # whatever it is, this request gets it and no other
            self.emit(error)
        finally:
            metrics.DRAWN_BYTES.inc(self.drawn_bytes - before)
            if self._events:
                self.wake()
        return False

    def wake(self) -> None:
        self._wake.set()

    def close(self) -> None:
        """Drops what it holds at once: the turns and the job refer to each other."""
        if self._turns:
            self._turns.close()
        self._turns = self._work = None
        self._events.clear()

    async def events(self) -> AsyncIterator[list[Any]]:
        """What has come since the last time. Raises what the work raised."""
        while not self.gone:
            await self._wake.wait()
            self._wake.clear()
            some = []
            while self._events:
                event = self._events.popleft()
                if event is None or isinstance(event, Exception):
                    if some:
                        yield some
                    if event:
                        raise event
                    return
                some.append(event)
            if some:
                yield some


class Scheduler:
    """streams: jobs that take turns; queue: jobs that wait for a place among them."""

    def __init__(self, streams: int, queue: int) -> None:
        self._streams, self._queue = streams, queue
        self._waiting: collections.deque[Job] = collections.deque()
        self._first: collections.deque[Job] = collections.deque()  # that have had no turn
        self._turns: collections.deque[Job] = collections.deque()
        self._computing: Job | None = None
        self._first_is_next = False
        self._work = asyncio.Event()
        self.draining = False

    @property
    def running(self) -> int:
        return len(self._first) + len(self._turns) + (self._computing is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, work: Callable[[Job], Iterator[None]]) -> Job:
        """Raises ApiError where the queue is full, or the server shuts down."""
        if self.draining:
            raise shutting_down()
        if self.waiting + self.running >= self._streams + self._queue:
            message = "Too many requests wait; try again"
            code = "rate_limit_exceeded"
            raise ApiError(429, message, kind="rate_limit_error", code=code, headers=RETRY)
        job = Job(work)
        self._waiting.append(job)
        self._work.set()
        return job

    def leave(self, job: Job) -> None:
        """Nobody waits for it any more: not a byte more is computed of it."""
        job.gone = job.cut = True
        for jobs in (self._waiting, self._first, self._turns):
            with contextlib.suppress(ValueError):
                jobs.remove(job)
        job.close()
        job.wake()

    def cut(self, job: Job) -> None:
        """Ends a job with what it has; one that has not begun, with an error."""
        job.cut = True
        if job in self._waiting:
            self._waiting.remove(job)
            busy = ApiError(503, "Too busy; try again", kind="server_error", headers=RETRY)
            job.emit(shutting_down() if self.draining else busy)
            job.wake()

    def cut_all(self) -> None:
        for job in [*self._waiting, *self._first, *self._turns, *filter(None, [self._computing])]:
            self.cut(job)

    async def run(self) -> None:
        """Computes until it is cancelled."""
        while True:
            job = self._computing = self._next()
            if not job:
                self._work.clear()
                await self._work.wait()
                continue
            more = job.turn()
            for _ in range(PASSES):
                await asyncio.sleep(0)
            self._computing = None
            if more and not job.gone:
                self._turns.append(job)

    def _next(self) -> Job | None:
        """Every second turn is a first one, where there are such: a text begins soon, however many
        others there are, and new ones do not hold up the others."""
        while self._waiting and self.running < self._streams:
            self._first.append(self._waiting.popleft())
        self._first_is_next = not self._first_is_next
        ours, others = self._first, self._turns
        if not self._first_is_next:
            ours, others = others, ours
        return (ours or others).popleft() if ours or others else None

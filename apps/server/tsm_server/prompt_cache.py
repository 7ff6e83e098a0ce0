"""States after prompts, so that what an earlier prompt began with is not read again. The text that
follows is the same to the bit.

In memory, the longest unused go first; in Redis too, where there is one, for all replicas. An
entry belongs to an API key and a salt: nobody learns from the time of an answer what others ask.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import time
from typing import Any

from tsm.runtime import Model

from .completion import PromptRead, Start
from .sealed import Sealer

LOG = logging.getLogger("tsm_server")
BLOCK_BYTES = 256  # of a prompt, of which whole blocks are kept: a multiple of every engine's
REDIS_SECONDS = 0.2  # that an answer may take; it is a miss then
REDIS_PAUSE_SECONDS = 5  # without Redis after an error
REDIS_EXPIRE_SECONDS = 86_400


class PromptCache:
    """limit_bytes: of states in memory; redis_url: of a server that other replicas use too."""

    def __init__(self, model: Model, sealer: Sealer, limit_bytes: int, redis_url: str = "") -> None:
        engine = model.engine
        self._model = f"{engine.artifact.sha256} {engine.name} {engine.kernels}".encode()
        self._sealer, self._limit = sealer, limit_bytes
        self._entries: collections.OrderedDict[bytes, bytes] = collections.OrderedDict()
        self._size = 0
        self._redis, self._paused_until = None, 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        if redis_url:
            from redis.asyncio import Redis  # the extra `redis`

            timeouts: Any = {"socket_timeout": REDIS_SECONDS}
            timeouts["socket_connect_timeout"] = REDIS_SECONDS
            self._redis = Redis.from_url(redis_url, **timeouts)

    @staticmethod
    def kept_bytes(prompt: bytes) -> int:
        """After how many bytes of a prompt its state is kept."""
        return len(prompt) // BLOCK_BYTES * BLOCK_BYTES

    async def start(self, prompt: bytes, owner: tuple[bytes, ...]) -> Start | None:
        """The state after the longest beginning of the prompt that there is."""
        names = self._names(prompt, owner)
        for count, name in reversed(names):
            if state := self._entries.get(name):
                self._entries.move_to_end(name)
                if count == len(names) * BLOCK_BYTES or not self._redis:
                    return Start(state, count)
                break
        else:
            count, state = 0, b""
        shared = await self._shared_start(names[count // BLOCK_BYTES :])
        return shared or (Start(state, count) if state else None)

    def put(self, found: PromptRead, owner: tuple[bytes, ...]) -> None:
        name = self._names(found.prompt[: found.count], owner)[-1][1]
        self._remember(name, found.state)
        if self._redis and time.monotonic() >= self._paused_until:
            task = asyncio.create_task(self._share(name, found.state))
            self._tasks.add(task)  # or it is collected
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        if self._redis:
            await self._redis.aclose()

    def _remember(self, name: bytes, state: bytes) -> None:
        self._size += len(state) - len(self._entries.pop(name, b""))
        self._entries[name] = state
        while self._size > self._limit:
            self._size -= len(self._entries.popitem(last=False)[1])

    def _names(self, prompt: bytes, owner: tuple[bytes, ...]) -> list[tuple[int, bytes]]:
        """The length of each whole number of blocks of the prompt, and its entry's name."""
        digest, names = hashlib.sha256(), []
        for end in range(BLOCK_BYTES, len(prompt) + 1, BLOCK_BYTES):
            digest.update(prompt[end - BLOCK_BYTES : end])
            name = self._sealer.name(b"prompt", self._model, *owner, digest.digest())
            names.append((end, name))
        return names

    async def _shared_start(self, names: list[tuple[int, bytes]]) -> Start | None:
        if not (self._redis and names) or time.monotonic() < self._paused_until:
            return None
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                pipeline = self._redis.pipeline(transaction=False)
                for _, name in names:
                    pipeline.exists(_key(name))
                there = await pipeline.execute()
                for (count, name), found in reversed([*zip(names, there, strict=True)]):
                    if found and (sealed := await self._redis.get(_key(name))):
                        state = self._sealer.open(sealed, b"prompt", name)
                        if state is not None:
                            self._remember(name, state)
                            return Start(state, count)
        except Exception as error:  # Redis's own, and those of sockets
            self._pause(error)
        return None

    async def _share(self, name: bytes, state: bytes) -> None:
        sealed = self._sealer.seal(state, b"prompt", name)
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                await self._redis.set(_key(name), sealed, ex=REDIS_EXPIRE_SECONDS)
        except Exception as error:
            self._pause(error)

    def _pause(self, error: Exception) -> None:
        self._paused_until = time.monotonic() + REDIS_PAUSE_SECONDS
        LOG.warning("Redis: %s; without it for %d s", str(error) or "slow", REDIS_PAUSE_SECONDS)


def _key(name: bytes) -> str:
    return f"tsm:prompt:{name.hex()}"

"""Limits and names of a server."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Set by the options of the command, which say what each is."""

    model_name: str = "model"
    api_keys: tuple[str, ...] = ()  # none: anybody who reaches the address may ask
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")  # `*`: any
    origins: tuple[str, ...] = ()
    streams: int = 64
    queue: int = 64
    connections: int = 512
    prompt_bytes: int = 65_536
    output_bytes: int = 32_768
    body_bytes: int = 1 << 20
    cache_bytes: int = 8 << 20
    header_seconds: float = 10
    body_seconds: float = 10
    read_seconds: float = 30  # of a client that reads nothing of its answer
    request_seconds: float = 120
    grace_seconds: float = 10

"""Who may ask, and how: an ASGI application around another, which is not asked otherwise."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
import uuid
from typing import Any

from . import metrics
from .messages import ApiError
from .settings import Settings

LOG = logging.getLogger("tsm_server")
PATH_CHARACTERS = 200  # of a log line
OPEN = ("/health",)  # to those without a key


class Guard:
    """Checks Host and Origin, which a web page in somebody's browser cannot fake; the API key.
    Names, counts and logs every request.

    paths: those that metrics tell apart.
    """

    def __init__(self, app: Any, settings: Settings, paths: frozenset[str]) -> None:
        self._app, self._settings, self._paths = app, settings, paths
        # Digests, so that comparing tells nothing of a key's length either.
        self._keys = [hashlib.sha256(key.encode("latin-1")).digest() for key in settings.api_keys]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        started, status = time.perf_counter(), 0
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        allowed = origin is not None and origin in self._settings.origins
        added = [(b"x-request-id", uuid.uuid4().hex.encode())]
        added += [(b"x-content-type-options", b"nosniff"), (b"vary", b"Origin")]
        if allowed:
            added += [(b"access-control-allow-origin", origin.encode("latin-1"))]
            added += [(b"access-control-expose-headers", b"x-request-id, retry-after")]

        async def send_named(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        try:
            try:
                self._check_place(headers, origin, allowed)
                if scope["method"] == "OPTIONS" and allowed:
                    await send_named(_PREFLIGHT)
                    await send_named({"type": "http.response.body"})
                    return
                scope["state"]["api_key"] = self._check_key(scope["path"], headers)
            except ApiError as error:
                await send_error(send_named, error)
                return
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.perf_counter() - started
            self._note(scope, status, seconds, added[0][1].decode())

    def _note(self, scope: Any, status: int, seconds: float, name: str) -> None:
        """Counts a request, and logs it without its query and headers, where secrets are."""
        path = scope["path"]
        of_a_model = path.startswith("/v1/models/") and status == 200
        known = path if path in self._paths else "/v1/models/{model}" if of_a_model else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        metrics.REQUESTS.labels(method, known, str(status)).inc()
        shown = f"{status} left" if scope["state"].get("left") else str(status)
        line = "%s %s %s %.0f ms %s"
        LOG.info(line, scope["method"][:16], path[:PATH_CHARACTERS], shown, seconds * 1000, name)

    def _check_place(self, headers: dict[bytes, str], origin: str | None, allowed: bool) -> None:
        hosts, host = self._settings.hosts, headers.get(b"host", "")
        name = host.lower()
        if not name.endswith("]"):
            left, colon, port = name.rpartition(":")
            name = left if colon and port.isdigit() else name
        if "*" not in hosts and name not in hosts:
            wanted = "wanted one of --allow-host"
            raise ApiError(403, f"Host {host[:100]!r}, {wanted}", code="host_not_allowed")
        if origin is not None and not allowed:
            wanted = "wanted one of --allow-origin"
            raise ApiError(403, f"Origin {origin[:100]!r}, {wanted}", code="origin_not_allowed")

    def _check_key(self, path: str, headers: dict[bytes, str]) -> bytes:
        """The digest of the key, empty where none is wanted."""
        if not self._keys or path in OPEN:
            return b""
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        found = hashlib.sha256(key.strip().encode("latin-1")).digest()
        same = [hmac.compare_digest(found, known) for known in self._keys]  # all, whichever it is
        if scheme.lower() != "bearer" or not any(same):
            message = "Incorrect API key, or none; wanted `Authorization: Bearer KEY`"
            challenge = {"www-authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=challenge)
        return found


_PREFLIGHT = {
    "type": "http.response.start",
    "status": 204,
    "headers": [
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"authorization, content-type"),
        (b"access-control-max-age", b"600"),
    ],
}


def too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"The body is too large, wanted at most {limit_bytes:,} bytes")


async def read_body(scope: Any, receive: Any, settings: Settings) -> bytes:
    """The whole body. Raises ApiError where it is too large or too slow, or not said to be JSON: a
    web page may post text without asking first."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    kind = headers.get(b"content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, f"Content-Type {kind[:100]!r}, wanted application/json")
    length = headers.get(b"content-length", "")
    if length.isdigit() and int(length) > settings.body_bytes:
        raise too_large(settings.body_bytes)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(settings.body_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "The client left")
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > settings.body_bytes:
                    raise too_large(settings.body_bytes)
    except TimeoutError:
        close = {"connection": "close"}
        message = f"The body took more than {settings.body_seconds:g} s"
        raise ApiError(408, message, headers=close) from None
    return bytes(body)


async def send_error(send: Any, error: ApiError) -> None:
    body = error.body()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(k.encode(), v.encode()) for k, v in {**headers, **error.headers}.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})

"""Serves a TSM model with OpenAI's API, on this machine unless told otherwise.

    tsm-server                                     # http://127.0.0.1:8080/v1, the shipped model
    tsm-server runs/mine/model-int8.onnx --port 8081
    tsm-server --address 0.0.0.0 --api-key-file keys.txt --state-key-file state.key

A client may keep a text's state and send it with its next request: the server keeps none.
SIGTERM ends it: no new requests, and those that run have --grace-seconds to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tsm.runtime import load
from tsm.runtime.command import (
    SIGNALS,
    CommandError,
    Parser,
    Signalled,
    complain,
    number,
    run_command,
)
from tsm.runtime.engines import ENGINES, SHIPPED_MODEL
from tsm.runtime.text import printable

from .settings import Settings

PROG = "tsm-server"
KEY_BYTES = 32  # of the key that states are signed with, at least
HEAD_BYTES = 16_384  # of a request, before its body
BACKLOG = 512  # connections that the system holds until they are taken
KEEP_ALIVE_SECONDS = 75  # longer than nginx keeps a connection
SHUTDOWN_SECONDS = 5  # beyond the grace, to send what there is
LEVELS = ("debug", "info", "warning", "error")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command(PROG, lambda: _serve(_arguments(argv)))


def _serve(arguments: Namespace) -> None:
    settings = _settings(arguments)
    _check_address(arguments.address, settings)
    state_key = _state_key(arguments.state_key_file)
    _log(arguments.log_level)
    with load(arguments.model, arguments.engine) as model, _listening(arguments) as listener:
        with _needs_packages():
            import uvicorn

            from .app import Server
            from .prompt_cache import PromptCache
            from .protocol import limited
            from .sealed import Sealer

            sealer = Sealer(state_key)
            cache = PromptCache(model, sealer, settings.cache_bytes, arguments.redis)
        server = Server(model, settings, sealer, cache)
        config = uvicorn.Config(
            server.app,
            http=limited(settings),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + SHUTDOWN_SECONDS,
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
        received: list[int] = []
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        complain(PROG, f"{settings.model_name} at http://{shown}:{port}/v1")
        asyncio.run(_run(uvicorn.Server(config), server, listener, received))
    if received and received[0] != signal.SIGTERM:
        raise Signalled(received[0])


async def _run(http: Any, server: Any, listener: socket.socket, received: list[int]) -> None:
    """Until a signal comes; all requests end in time."""
    loop = asyncio.get_running_loop()

    def end(which: int) -> None:
        server.drain()
        http.should_exit = True
        at_once = received or which != signal.SIGTERM
        received.append(which)
        loop.call_later(0 if at_once else server.settings.grace_seconds, server.scheduler.cut_all)

    for each in SIGNALS:
        if signal.getsignal(each) is not signal.SIG_IGN:
            loop.add_signal_handler(each, end, each)
    # Not `serve`, whose signal handlers end the process by the signal.
    computing = asyncio.create_task(server.scheduler.run())
    await http._serve([listener])
    computing.cancel()
    await server.close()


@contextlib.contextmanager
def _needs_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        wanted = "wanted: pip install -r requirements/server.lock in a clone of the project"
        raise CommandError(f"{package} is not installed, {wanted}") from None
    except ValueError as error:  # Redis's
        raise CommandError(f"--redis: {error}") from None


@contextlib.contextmanager
def _listening(arguments: Namespace) -> Iterator[socket.socket]:
    address = arguments.address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, arguments.port))
            listener.listen(BACKLOG)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise CommandError(f"{address}:{arguments.port}: {reason}") from None
        yield listener


def _settings(arguments: Namespace) -> Settings:
    names = ("streams", "queue", "connections", "prompt_bytes", "output_bytes", "body_bytes")
    names += ("cache_bytes", "header_seconds", "body_seconds", "read_seconds", "request_seconds")
    names += ("grace_seconds",)
    address = arguments.address
    bound = f"[{address}]" if ":" in address else address
    return Settings(
        model_name=arguments.name or Path(arguments.model).stem,
        api_keys=_keys(arguments.api_key_file),
        hosts=(*Settings.hosts, bound, *(host.lower() for host in arguments.allow_host)),
        origins=tuple(arguments.allow_origin),
        **{name: getattr(arguments, name) for name in names},
    )


def _keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    keys = tuple(line.strip() for line in _read(path).decode("latin-1").splitlines())
    keys = tuple(key for key in keys if key)
    if not keys:
        raise CommandError(f"{path}: no key, wanted one a line")
    return keys


def _state_key(path: str | None) -> bytes:
    if path is None:
        return os.urandom(KEY_BYTES)
    key = _read(path).strip()
    if len(key) < KEY_BYTES:
        wanted = f"wanted {KEY_BYTES} or more that nobody can guess (openssl rand -hex 32)"
        raise CommandError(f"{path}: {len(key)} bytes, {wanted}")
    return key


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"{path}: {reason}, wanted a file of a key") from None


def _check_address(address: str, settings: Settings) -> None:
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise CommandError(f"--address: found {address!r}, wanted an IP address") from None
    if not (loopback or settings.api_keys):
        wanted = "wanted --api-key-file with it, or a loopback address"
        raise CommandError(f"--address: found {address}, {wanted}")


class _Formatter(logging.Formatter):
    """A line a record, whatever a client has put into it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\\n").replace("\t", "\\t")


def _log(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("tsm_server").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(max(logging.ERROR, getattr(logging, level.upper())))


def _arguments(argv: Sequence[str] | None) -> Namespace:
    default = Settings()
    count = number(int, 1, 1 << 20, "a whole number, 1 or more")
    some = number(int, 0, 1 << 20, "a whole number, 0 or more")
    size = number(int, 1, 1 << 40, "a whole number, 1 or more")
    seconds = number(float, 0.1, 86_400, "seconds, 0.1 or more")
    parser = Parser(PROG, __doc__)
    add = parser.add_argument
    add("model", nargs="?", default=str(SHIPPED_MODEL), help="a .tflite or .onnx artifact")
    add("--engine", choices=ENGINES, default="", help="what computes (default: the best installed)")
    add("--name", default="", help="of the model in the API (default: the file's)")
    access = parser.add_argument_group("who may ask")
    add = access.add_argument
    add("--address", default="127.0.0.1", metavar="IP", help="to listen at")
    add("--port", type=number(int, 0, 65_535, "0 to 65535"), default=8080, help="0: any free one")
    add("--api-key-file", metavar="FILE", help="API keys, one a line")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a Host besides loopback's and the address's; *: any; repeatable",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="of web pages that may ask, as https://pad.example; repeatable (default: none)",
    )
    shared = parser.add_argument_group("between servers")
    add = shared.add_argument
    add(
        "--state-key-file",
        metavar="FILE",
        help="what states are signed with, the same for all replicas (default: a new key, so that "
        "states end with the process)",
    )
    add("--redis", default="", metavar="URL", help="a prompt cache that replicas share")
    limits = parser.add_argument_group("limits")
    for option, kind, text in (
        ("streams", count, "requests that are computed in turns"),
        ("queue", some, "requests that wait for a turn; more are answered 429"),
        ("connections", count, "connections; more are closed"),
        ("prompt-bytes", size, "of all prompts of a request"),
        (
            "output-bytes",
            size,
            "of all texts of a request, echoes included; 4 log-probabilities each",
        ),
        ("body-bytes", size, "of a request's body"),
        ("cache-bytes", some, "of states in the prompt cache"),
        ("header-seconds", seconds, "that a request's head may take"),
        ("body-seconds", seconds, "that its body may take"),
        ("read-seconds", seconds, "that a client may read nothing of its answer"),
        ("request-seconds", seconds, "that a request may take; its text ends then"),
        ("grace-seconds", seconds, "that texts may go on after SIGTERM"),
    ):
        limits.add_argument(
            f"--{option}",
            type=kind,
            default=getattr(default, option.replace("-", "_")),
            metavar="N",
            help=text,
        )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="of standard error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

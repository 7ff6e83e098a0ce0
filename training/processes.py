"""A run of several processes, one command on each host: every process makes every step with the
others, and process 0 alone writes.

JAX's own service, which they find each other through, ends a process with a C++ stack when another
one dies. So its connections pass through a proxy of this module: one that closes before the
end is a process that died, and every other one says so in a line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .config import RunError

JOIN_SECONDS = 300  # in which all processes have to have started
# A host that is gone without a word is found after 10 + 4 x 5 seconds, before JAX's service does.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
HEARTBEAT_SECONDS = 600
TELLING_SECONDS = 5
LOOPBACK = "127.0.0.1"

Address = tuple[str, int]


@dataclass(frozen=True)
class Processes:
    count: int = 1
    index: int = 0

    @property
    def first(self) -> bool:
        return self.index == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them; all have to ask."""
        if self.count == 1:
            return flag
        from jax.experimental.multihost_utils import process_allgather

        return bool(process_allgather(flag).any())  # pyright: ignore[reportAttributeAccessIssue]

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """What process 0 does first, and the others when it is done: to find what it wrote."""
        if not self.first:
            self.any(False)
        yield
        if self.first:
            self.any(False)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around all that they do. What fails, mostly fails because another process has died: the
        thread that sees its socket close then says so, and ends this one."""
        if self.count == 1:
            yield
            return
        import jax

        try:
            yield
            _watch.clear()
        except Exception as error:
            time.sleep(TELLING_SECONDS)
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise RunError(str(error).partition("\n")[0]) from None
            raise
        except (KeyboardInterrupt, SystemExit):  # agreed upon
            _watch.clear()
            raise


def leave(code: int) -> int:
    """The exit code of a command; at once where this process ends alone, for jax.distributed would
    wait for the others."""
    if _watch.is_set():
        sys.stderr.flush()
        os._exit(code)
    return code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="process 0's host and a free port there, with the same command on every host "
        "(default: one process)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="of the run")
    parser.add_argument("--process-id", type=int, metavar="N", help="of this one, from 0")


def join(arguments: argparse.Namespace) -> Processes:
    """Waits until all processes are there. Raises RunError."""
    address, count, index = arguments.coordinator, arguments.processes, arguments.process_id
    if address is None and count is None and index is None:
        return Processes()
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RunError(f"--coordinator {address}: wanted HOST:PORT")
    if count is None or index is None or not 0 <= index < count:
        raise RunError(
            f"--processes {count} --process-id {index}: wanted how many, and which from 0"
        )
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is Interrupt's
    try:
        if index == 0:
            inner = (LOOPBACK, _free_port())
            _forward_from(socket.create_server(("", int(port))), inner)
        else:
            listener = socket.create_server((LOOPBACK, 0))
            inner = listener.getsockname()
            _forward_from(listener, (host, int(port)))
        jax.distributed.initialize(
            f"{inner[0]}:{inner[1]}",
            count,
            index,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"{inner[0]}:{inner[1]}",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except OSError as error:
        raise RunError(
            f"--coordinator {address}: {(error.strerror or str(error)).lower()}"
        ) from None
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"--coordinator {address}: {reason}") from None
    _watch.set()
    return Processes(count, index)


_watch, _losing = threading.Event(), threading.Lock()


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        return server.getsockname()[1]


def _forward_from(listener: socket.socket, goal: Address) -> None:
    def accept() -> None:
        while True:
            near, _ = listener.accept()
            _start(_connect, near, goal)

    _start(accept)


def _start(work, *arguments) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def _connect(near: socket.socket, goal: Address) -> None:
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            far = socket.create_connection(goal)
            break
        except OSError:
            if time.monotonic() > until:
                near.close()
                return
            time.sleep(0.1)
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _start(_forward, near, far)
    _start(_forward, far, near)


def _forward(source: socket.socket, goal: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            goal.sendall(data)
    if _watch.is_set():
        _lost()
    for end in (source, goal):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _lost() -> None:
    """Ends this process, whatever its threads wait for."""
    _losing.acquire()  # by the first thread that comes
    said = (
        "tsm-train: another process of the run has died: stopped. The last checkpoint stays; the "
        "same command goes on from it, also with fewer processes\n"
    )
    show_cursor = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, (show_cursor + said).encode())
    os._exit(1)

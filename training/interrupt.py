"""Ctrl-C in a training: at once while it starts, after a whole step later."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from ..runtime.command import SIGNALLED, SIGNALS


class Interrupt:
    """Once made, a signal of SIGNALS ends the process with one line and exit code 128 + its
    number, until `finish_steps`. From then on it is noted as `received`, and only a second one ends
    at once. Signals that the process was started to ignore are ignored.

    Compilers that the process starts never see a Ctrl-C: each would print its own stack."""

    def __init__(self, prog: str) -> None:
        self.prog, self.received, self.at_once = prog, 0, True
        self.what = "interrupted while starting"
        heard = [n for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        for number in heard:
            signal.signal(number, self._handle)
        if signal.SIGINT in heard and hasattr(signal, "pthread_sigmask"):
            # The main thread may be inside C++ for minutes: a thread of its own waits. Processes
            # and threads that are started from now on inherit what is blocked.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            threading.Thread(target=self._wait, daemon=True).start()

    def finish_steps(self) -> None:
        self.at_once = False

    def end_at_once(self, what: str) -> None:
        """From now on, with a line that says what was interrupted; commands that are started hear
        a Ctrl-C too."""
        self.at_once, self.what = True, what
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _wait(self) -> None:
        while True:
            self._handle(signal.sigwait([signal.SIGINT]))

    def _handle(self, number: int, _: Any = None) -> None:
        if not self.at_once and not self.received:
            self.received = number
            said = f"{self.prog}: finishing this step; once more ends at once\n"
            os.write(2, f"\r\x1b[K{said}".encode() if sys.stderr.isatty() else said.encode())
            return
        show_cursor = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""
        what = self.what if self.at_once else "the last checkpoint stays"
        os.write(2, f"{show_cursor}{self.prog}: {what}\n".encode())
        os._exit(SIGNALLED + number)

"""How tests run the commands of runtime/: as a user does, each in a process of its own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "runtime"
TFLITE, ONNX = RUNTIME / "shakespeare-int8.tflite", ROOT / "models/shakespeare-int8.onnx"
TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
# A locale in which Python takes arguments and names for ASCII.
ASCII_LOCALE = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def python(*arguments: object, **settings) -> subprocess.CompletedProcess:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300, **settings}
    return subprocess.run([sys.executable, *map(str, arguments)], check=False, **settings)


def run(command: str, *arguments: object, **settings) -> subprocess.CompletedProcess:
    """Runs runtime/COMMAND.py."""
    return python(RUNTIME / f"{command}.py", *arguments, **settings)


def output(command: str, *arguments: object, **settings) -> bytes:
    """What it prints; nothing may have gone wrong."""
    done = run(command, *arguments, **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def generated(*arguments: object, **settings) -> bytes:
    """A text of the shipped model, of seed 0."""
    return output("generate", "--seed", 0, *arguments, **settings)


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line of a command that has refused its input."""
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done.stderr
    return done.stderr.decode()


def on_terminal(command: str, *arguments: object, **settings) -> subprocess.CompletedProcess:
    """Runs a command of the runtime as `shown_by`."""
    line = [sys.executable, str(RUNTIME / f"{command}.py"), *map(str, arguments)]
    return shown_by(line, **settings)


def shown_by(line: list[str], typed: bytes = b"", **settings) -> subprocess.CompletedProcess:
    """Runs a program whose standard output is a terminal; `typed` is its standard input."""
    ours, theirs = pty.openpty()
    settings = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    with subprocess.Popen(line, stdout=theirs, **settings) as process:
        os.close(theirs)
        process.stdin.write(typed)
        process.stdin.close()
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the end of a terminal
            pass
        errors = process.stderr.read() if process.stderr else b""
    os.close(ours)
    shown = shown.replace(b"\r\n", b"\n")
    return subprocess.CompletedProcess(line, process.returncode, shown, errors)

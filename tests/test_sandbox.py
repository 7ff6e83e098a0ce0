"""A process that generates asks nothing of the system but to read its files: it runs where seccomp
kills whoever opens a socket, starts a process, or opens a file to write.

pytest tests/test_sandbox.py
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

RUNTIME = Path(__file__).parent.parent / "runtime"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the filter is x86-64 Linux's"
)
# What is killed for: socket, connect, fork, vfork, execve, kill, rename, mkdir, unlink, clone3, and
# openat with a flag of writing. clone stays: a thread is no process.
CONFINED = """
import ctypes, runpy, struct, sys

LOAD, EQUAL, AND_ANY, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF: a word at, jumps, and the verdict
KILL, ALLOW = 0x80000000, 0x7FFF0000
NUMBER, FLAGS = 0, 16 + 8 * 2  # offsets of the call's number and of openat's third argument
OPENAT, WRITING = 257, 0o1 | 0o2 | 0o100 | 0o1000  # WRONLY, RDWR, CREAT, TRUNC
FORBIDDEN = [41, 42, 57, 58, 59, 62, 82, 83, 87, 435]
program = [(LOAD, 0, 0, NUMBER)]
program += [(EQUAL, len(FORBIDDEN) - i + 3, 0, n) for i, n in enumerate(FORBIDDEN)]
program += [(EQUAL, 0, 2, OPENAT), (LOAD, 0, 0, FLAGS), (AND_ANY, 1, 0, WRITING)]
program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))


class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert libc.prctl(22, 2, ctypes.byref(Filter(len(program), ctypes.addressof(code))), 0, 0) == 0
what = sys.argv[1]
sys.argv = sys.argv[1:]
if what.endswith(".py"):
    sys.path.insert(0, what.rpartition("/")[0])
    runpy.run_path(what, run_name="__main__")
else:
    exec(what)
"""


def confined(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-B", "-c", CONFINED, *arguments]
    return subprocess.run(command, capture_output=True, check=False)


@pytest.mark.parametrize("engine", ["native", "litert"])
def test_it_generates_in_a_sandbox(engine):
    script = [str(RUNTIME / "generate.py"), "--seed", "0", "--bytes", "40", "--engine", engine]
    done = confined(*script)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 40)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "open('/tmp/tsm-forbidden', 'w')",
        "import os; os.rename('/tmp/tsm-none', '/tmp/tsm-forbidden')",
    ],
)
def test_the_sandbox_kills(code):
    assert confined(code).returncode == -31  # SIGSYS

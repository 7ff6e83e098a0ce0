"""What all commands of runtime/ have in common: mistakes, interrupts, full disks, closed pipes.

pytest tests/test_commands.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from commands import ROOT, RUNTIME, TEXT, refused, run

TOOLS = ("bench", "score", "describe", "compress", "complete")
MISTAKES = [
    *((tool, ["--colour"], "--colour") for tool in TOOLS),
    ("describe", ["/no/such/model"], "/no/such/model: no such file"),
    ("describe", [os.devnull], "is no regular file"),
    ("bench", ["--longest", "0"], "found '0', wanted a whole number, 1 or more"),
    ("bench", ["--repeats", "x"], "found 'x'"),
    ("bench", ["--engine", "gpu"], "invalid choice: 'gpu'"),
    ("bench", ["--engine", "onnx"], "engine onnx cannot run it, wanted native or litert"),
    ("bench", ["--engine", "native", "--weight-cache", "x"], "wanted litert among them"),
    ("score", ["/no/such/text"], "/no/such/text: no such file or directory"),
    ("score", [RUNTIME], "is a directory"),
    ("score", ["--threshold=-1"], "found '-1', wanted a finite number, 0 or more"),
    ("score", ["--threshold", "nan"], "found 'nan'"),
    ("score", ["--quantile", "1.1"], "found '1.1', wanted a number from 0 to 1"),
    ("score", ["--quantile", "1", "--threshold", "1"], "not allowed with"),
    ("score", ["--unit", "bans"], "invalid choice: 'bans'"),
    ("score", ["--model", RUNTIME / "score.py", os.devnull], "0 TSM headers"),
    ("compress", ["/no/such/text"], "/no/such/text: no such file or directory"),
    ("compress", ["/dev/null", "--out", "/no/such/folder/x"], "/no/such/folder/x"),
    ("compress", ["-d", "x.txt"], "x.txt: no name ending in .tsm, wanted --out FILE"),
    ("compress", ["-d", ".tsm"], ".tsm: no name ending in .tsm"),
    ("compress", ["-d", os.devnull, "--out", "/tmp/no-such-text.tsm"], "not made by tsm-compress"),
    ("compress", ["--json"], "wanted --out FILE"),
]


@pytest.mark.parametrize(("tool", "arguments", "says"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_a_mistake_is_one_clear_line(tool, arguments, says):
    line = refused(run(tool, *arguments))
    assert says in line and line.startswith(f"tsm-{tool}: ")


def test_an_interrupt_ends_quietly_and_leaves_no_file(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(TEXT * 10_000)
    for tool, options in (("compress", []), ("score", ["--threshold", "0"])):
        path = [sys.executable, str(RUNTIME / f"{tool}.py"), str(text), *options]
        with subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not (  # it has begun
                any(tmp_path.glob("text.tsm.*.partial"))
                if tool == "compress"
                else process.stdout.read(1)
            ):
                pass
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, b"")
        assert list(tmp_path.iterdir()) == [text]


def test_a_full_disk_and_a_closed_pipe_are_no_traceback():
    command_line = [sys.executable, str(RUNTIME / "describe.py")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command_line, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"tsm-describe: standard output: no space left on device\n",
    )
    path = [
        sys.executable,
        str(RUNTIME / "score.py"),
        "--threshold",
        "0",
        str(ROOT / "docs/comparison.svg"),
    ]
    with subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")

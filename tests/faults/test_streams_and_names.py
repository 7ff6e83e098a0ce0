"""Closed, full and strange standard streams, names and locales: the work is done, or one line says
why not; nothing is written before that is known; and no text steers a terminal.

pytest tests/faults/test_streams_and_names.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ASCII_LOCALE, RUNTIME, TEXT, TFLITE, generated, on_terminal, output, run

COMMANDS = ["generate", "score", "compress", "describe", "bench"]


def shell(line: str, *arguments: object, **settings) -> subprocess.CompletedProcess:
    """Runs a line of bash, in which $1, $2 and so on are the arguments and `py` is this Python."""
    python = f'env -u PYTHONUNBUFFERED "{sys.executable}"'
    command = ["bash", "-c", f'py() {{ {python} "$@"; }}; {line}', "bash"]
    arguments = [str(argument) for argument in arguments]
    settings = {"stdin": subprocess.DEVNULL, **settings}
    return subprocess.run([*command, *arguments], capture_output=True, check=False, **settings)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


# Closed


def test_without_standard_error_the_work_is_done(text, tmp_path):
    done = shell("py $1/score.py $2 2>&-", RUNTIME, text)
    assert done.returncode == 0 and done.stdout == output("score", text)
    done = shell("py $1/compress.py $2 -o $3 2>&-", RUNTIME, text, tmp_path / "packed")
    assert done.returncode == 0
    assert output("compress", "-d", tmp_path / "packed", "-o", "-") == TEXT
    assert shell("py $1/describe.py /no/such/model 2>&-", RUNTIME).returncode == 2


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("generate", ""),
        ("generate", "--json"),
        ("generate", "--save-state $2"),
        ("score", "$3"),
        ("compress", "$3 --out $2 --json"),
        ("compress", "$3 --out -"),
        ("describe", ""),
        ("bench", ""),
    ],
)
def test_without_standard_output_it_says_so_before_anything_is_written(
    command, options, text, tmp_path
):
    done = shell(f"py $1/{command}.py {options} >&-", RUNTIME, tmp_path / "out", text)
    line = f"tsm-{command}: standard output: closed, wanted it open\n"
    assert (done.returncode, done.stderr.decode()) == (2, line)
    assert list(tmp_path.iterdir()) == [text]


def test_a_command_that_needs_no_standard_output_does_without(text, tmp_path):
    done = shell("py $1/compress.py $2 -o $3 >&-", RUNTIME, text, tmp_path / "packed")
    assert (done.returncode, done.stderr) == (0, b"")
    assert output("compress", "-d", tmp_path / "packed", "-o", "-") == TEXT


@pytest.mark.parametrize(
    "line",
    ["generate.py --prompt-file -", "generate.py --interactive", "score.py", "compress.py -o $2"],
)
def test_without_standard_input_it_says_so(line, tmp_path):
    done = shell(f"py $1/{line} <&-", RUNTIME, tmp_path / "out")
    assert (done.returncode, done.stderr.count(b"\n"), done.stdout) == (2, 1, b"")
    assert b"standard input: closed, wanted it open" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_with_all_three_closed_a_file_does_not_take_their_numbers(text, tmp_path):
    line = "py $1/compress.py $2 -o $3 <&- >&- 2>&-"
    assert shell(line, RUNTIME, text, tmp_path / "packed").returncode == 0
    assert output("compress", "-d", tmp_path / "packed", "-o", "-") == TEXT


# Full, and broken


@pytest.mark.parametrize("command", ["generate", "score", "describe"])
def test_a_full_disk_behind_standard_output_is_one_line(command):
    with open("/dev/full", "wb") as full:
        done = run(command, stdout=full, input=TEXT)
    line = f"tsm-{command}: standard output: no space left on device\n"
    assert (done.returncode, done.stderr.decode()) == (2, line)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_full_disk_is_one_line_and_into_a_closed_pipe_none(command):
    done = shell("py $1 --help >/dev/full", RUNTIME / f"{command}.py")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    done = shell("py $1 --help | true; echo ${PIPESTATUS[0]}", RUNTIME / f"{command}.py")
    assert (done.stdout, done.stderr) == (b"0\n", b"")


@pytest.mark.parametrize(
    "line",
    [
        "generate.py --bytes 100000000",
        "score.py --threshold 0 $2",
        "describe.py",
        "describe.py --json",
    ],
)
def test_a_closed_pipe_ends_quietly(line, tmp_path):
    (tmp_path / "text").write_bytes(TEXT * 1000)
    line = f"py $1/{line} | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = shell(line, RUNTIME, tmp_path / "text")
    assert (done.stdout[1:], done.stderr) == (b"0\n", b"")


def test_a_message_that_cannot_be_written_is_no_traceback():
    done = shell("py $1/describe.py /no/such/model 2>/dev/full", RUNTIME)
    assert (done.returncode, done.stderr) == (2, b"")


# Encodings


@pytest.mark.parametrize(
    "settings", [{"PYTHONIOENCODING": "ascii"}, ASCII_LOCALE], ids=["ioencoding", "locale"]
)
def test_names_and_texts_that_are_not_ascii(settings, tmp_path):
    settings = {**os.environ, **settings}
    model = tmp_path / "è.tflite"
    shutil.copy(TFLITE, model)
    assert f"path  {model}\n" in output("describe", model, env=settings).decode()
    assert json.loads(output("describe", "--json", model, env=settings))["path"]
    done = run("score", "--model", model, "--threshold", 0, env=settings, input="é\n".encode())
    assert done.returncode == 0
    done = run("describe", tmp_path / "é.tflite", env=settings)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"no such file or directory" in done.stderr
    packed = tmp_path / "é.tsm"
    assert (
        "é.tsm"
        in json.loads(output("compress", TFLITE.parent / "by_path.py", "-o", packed, "--json"))[
            "out"
        ]
    )


def test_a_name_of_bytes_that_are_no_text_is_shown_as_it_is(tmp_path):
    model = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tflite")
    shutil.copy(TFLITE, model)
    assert b"/\xff.tflite\n" in output("describe", model)
    assert output("generate", model, "--seed", 0, "--bytes", 20) == generated("--bytes", 20)


@pytest.mark.parametrize("options", [("--stop", "é"), ("--stop-regex", "[éè]")])
def test_text_that_is_not_ascii_ends_a_text_in_any_locale(options):
    bias = [f"--logit-bias={byte}=900" for byte in "é".encode()]
    text = ("--bytes", 9, *bias, "--repetition-penalty", 2)  # "é" at once
    assert "é" in generated(*text).decode("utf-8", "replace")
    for environment in (None, ASCII_LOCALE):
        assert "é" not in generated(*text, *options, env=environment).decode("utf-8", "replace")


# Control characters

ESCAPE = ("--seed", 0, "--bytes", 3, "--logit-bias", "27=1000")


def test_generated_text_cannot_steer_a_terminal():
    done = on_terminal("generate", *ESCAPE)
    assert (done.returncode, done.stdout) == (0, rb"\x1b\x1b\x1b" + b"\n")
    assert output("generate", *ESCAPE) == b"\x1b\x1b\x1b"
    assert on_terminal("generate", *ESCAPE, "--raw").stdout == b"\x1b\x1b\x1b\n"
    for code in (0, 7, 8, 13, 127):
        bias = f"--logit-bias={code}=1000"
        shown = on_terminal("generate", "--seed", 0, "--bytes", 2, bias).stdout
        assert chr(code).encode() not in shown, code


def test_newlines_and_tabs_reach_a_terminal():
    text = on_terminal("generate", "--seed", 0, "--bytes", 300).stdout
    assert text == generated("--bytes", 300) + b"\n"
    tabs = on_terminal("generate", "--seed", 0, "--bytes", 2, "--logit-bias", "9=1000").stdout
    assert tabs == b"\t\t\n"


def test_a_conversation_cannot_steer_a_terminal():
    options = ("--interactive", *ESCAPE)
    assert on_terminal("generate", *options, typed=b"a\n").stdout == rb"\x1b\x1b\x1b" + b"\n"


def test_raw_bytes_reach_pipes_and_files_as_they_are():
    options = ("--bytes", 4, "--logit-bias", "255=1000")
    assert generated(*options, "--raw") == b"\xff\xff\xff\xff"
    assert generated(*options) == "\ufffd\ufffd\ufffd\ufffd".encode()
    assert generated(*options, "--raw", "--escape", "--stop", r"\xff\xff") == b""
    assert generated("--bytes", 300, "--raw") == generated("--bytes", 300)

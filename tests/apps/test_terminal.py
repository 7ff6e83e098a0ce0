"""The writing pad, in tmux as in a real terminal, and what it learns. make test-apps-terminal.

PYTHONPATH=$PWD/build/terminal .venv/bin/python -m pytest tests/apps/test_terminal.py
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import terminal  # noqa: E402
from prompt_toolkit.input import create_pipe_input  # noqa: E402
from prompt_toolkit.output import DummyOutput  # noqa: E402
from tsm_write import learn, session  # noqa: E402
from tsm_write.pad import Pad  # noqa: E402

from tsm.runtime import load  # noqa: E402
from tsm.runtime.command import CommandError  # noqa: E402
from tsm.runtime.complete import Completer  # noqa: E402
from tsm.training import model  # noqa: E402
from tsm.training.checkpoint import save_model  # noqa: E402
from tsm.training.spec import PRESETS  # noqa: E402

COMMAND = [sys.executable, "-m", "tsm_write.command"]
README = (ROOT / "apps/terminal/README.md").read_text()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(home):
    """Opens the pad on a file, and closes what is open in the end."""
    running = []

    def open_pad(*arguments: object) -> terminal.Terminal:
        names = ":".join(filter(None, sys.path))
        environment = {"PYTHONPATH": names, "LC_ALL": "C.UTF-8"}
        environment["XDG_DATA_HOME"] = os.environ["XDG_DATA_HOME"]
        running.append(terminal.Terminal([*COMMAND, "open", *map(str, arguments)], environment))
        wait(lambda: "Tab: a word" in running[-1].screen())
        return running[-1]

    yield open_pad
    for each in running:
        each.close()


def wait(condition) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "waited a minute"
        time.sleep(0.05)


def left(pad: terminal.Terminal) -> None:
    """Leaves the pad."""
    pad.key("C-q")
    wait(pad.ended)


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [*COMMAND, *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "timeout": 300, "check": False}
    return subprocess.run(line, stdin=subprocess.DEVNULL, **settings)


def test_what_is_typed_is_shown_completed_and_saved():
    terminal.typed(400, seed=3, tell=lambda row: None)


def test_a_word_all_or_none_is_taken(opened, home):
    pad = opened(home / "a.txt")
    with load() as shipped, Completer(shipped) as completer:
        writer = terminal.Writer(completer)
        pad.type("What say you to this gentle")
        for key in "What say you to this gentle":
            writer.press(key)
        assert writer.shown()[1] == "man"  # else nothing is to be taken below
        for key in ("Escape", "m", "Tab", "Space", "BSpace", "BSpace", "Right"):
            pad.key(key)
            writer.press(key)
            wait(lambda: terminal.at_cursor(pad.settled()) == writer.shown())
        left(pad)
        assert (home / "a.txt").read_text() == writer.text
        assert writer.text.startswith("What say you to this gentleman")


def test_a_suggestion_goes_where_the_cursor_goes(opened, home):
    pad = opened(home / "a.txt")
    pad.type("What say you to this gentle")
    wait(lambda: terminal.at_cursor(pad.settled())[1] == "man")
    pad.key("Left")
    wait(lambda: terminal.at_cursor(pad.settled())[1] == "")
    pad.type("X")  # in the middle of a line nothing is suggested
    wait(lambda: terminal.at_cursor(pad.settled()) == ("What say you to this gentlXe", ""))
    pad.key("BSpace")
    pad.key("End")
    wait(lambda: terminal.at_cursor(pad.settled()) == ("What say you to this gentle", ""))
    left(pad)


def test_a_session_goes_on_where_it_was(opened, home):
    path = home / "a.txt"
    path.write_bytes("Zürich\r\nBern".encode())
    pad = opened(path)
    pad.key("Up")
    pad.key("End")
    pad.type("!")
    left(pad)
    assert path.read_bytes() == "Zürich!\r\nBern".encode()
    again = session.Session(path)
    assert (again.text, again.cursor) == ("Zürich!\nBern", len("Zürich!"))
    pad = opened(path)
    pad.type("?")
    wait(lambda: "Zürich!?" in pad.screen())
    os.kill(pad.process, signal.SIGTERM)  # a closed window, a shutdown
    wait(pad.ended)
    assert path.read_bytes() == "Zürich!?\r\nBern".encode()
    path.write_text("short")
    assert session.Session(path).cursor == len("short")


def test_a_killed_pad_has_lost_seconds_at_most(opened, home):
    pad = opened(home / "a.txt")
    pad.type("kept")
    wait(lambda: (home / "a.txt").read_text() == "kept")
    os.kill(pad.process, signal.SIGKILL)
    assert (home / "a.txt").read_text() == "kept"


def test_a_pad_that_cannot_save_is_left_with_a_copy(opened, home, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(home))
    folder = home / "gone"
    folder.mkdir()
    pad = opened(folder / "a.txt", "--threshold", 1)
    pad.type("kept")
    shutil.rmtree(folder)
    pad.key("C-q")
    wait(lambda: "NOT SAVED: no such file or directory  ^Q again" in pad.screen())
    pad.type("!")
    left(pad)
    [copy] = home.glob("tsm-write-*/a.txt")
    assert copy.read_text() == "kept!"


def test_a_pad_that_cannot_keep_a_copy_stays_open():
    """Both disks are full, until there is room for a copy."""
    bars: list[str] = []

    def save(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def copy(text: str) -> Path:
        if len(bars) < 3:
            save()
        return Path(f"copy of {text}")

    with create_pipe_input() as keys, load() as shipped, Completer(shipped) as completer:
        pad = Pad("kept", 4, completer, save, copy, "a.txt", input=keys, output=DummyOutput())

        def leave(_: object) -> None:
            bars.append(pad._bar())
            keys.send_text("\x11")

        pad.app.after_render += leave
        pad.run()
    assert "NOT SAVED: no space left on device  ^Q again" in bars[1]
    assert "NOT SAVED: no copy either: no space left on device" in bars[2]
    assert pad.unsaved.endswith("the text is in copy of kept")


def test_bad_input_is_one_line(home):
    (home / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommandError, match="not UTF-8"):
        session.Session(home / "binary")
    with pytest.raises(FileNotFoundError, match="none/a.txt"):  # as at the start of the pad
        session.Session(home / "none/a.txt").save("", 0)
    (home / "few").mkdir()
    (home / "few/a.md").write_text("hello")
    for arguments, wanted in (
        (("open", home / "a.txt"), "no terminal, wanted one"),
        (("learn", home / "few"), "6 bytes in 1 notes"),
        (("learn", home / "nowhere"), "no folder, wanted one of notes"),
        (("open", home / "a.txt", "--threshold", "7"), "wanted a number from 0.01 to 1"),
        ((), "required"),
    ):
        done = ran(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert wanted in done.stderr


def test_what_another_program_writes_meanwhile_is_kept(home):
    path, other = home / "a.txt", home / "a.txt~"
    path.write_text("begun")
    ours = session.Session(path)
    ours.save("begun, and", 10)
    assert not other.exists()
    path.write_text("begun, but")
    ours.save("begun, and gone on", 18)
    assert (path.read_text(), other.read_text()) == ("begun, and gone on", "begun, but")
    other.unlink()
    ours.save("begun, and gone on with", 23)
    assert not other.exists()


def test_without_a_home_it_says_what_to_set(home, monkeypatch):
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(CommandError, match="no home folder, wanted XDG_DATA_HOME"):
        session.Session(home / "a.txt")


def test_names_beyond_ascii_are_shown_in_any_locale(home, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    notes = home / "é"
    notes.mkdir()
    (notes / "a.md").write_text("The ferry to the island leaves at seven.\n" * 400)
    done = ran("learn", notes, "--out", notes, "--", "--no-such-option")
    assert done.returncode == 2 and done.stderr.count("\n") == 2, done.stderr
    assert f"1 notes, 16,400 bytes, in {notes}" in done.stdout


def test_notes_are_gathered_oldest_first(home, capsys):
    notes = home / "notes"
    (notes / ".hidden").mkdir(parents=True)
    (notes / "deep").mkdir()
    contents = {"b.md": b"B" * 6000, "deep/a.txt": b"A\r\n" * 2000, "c.rst": b"\xff" * 9000}
    contents |= {".hidden/d.md": b"D" * 9000, "e.py": b"E" * 9000}
    for age, (name, data) in enumerate(contents.items()):
        (notes / name).write_bytes(data)
        os.utime(notes / name, (1000 - age, 1000 - age))
    text, count = learn.gathered(notes)
    assert text == (b"A\n" * 2000).strip() + b"\n\n" + b"B" * 6000 + b"\n"
    assert count == 2 and "c.rst" in capsys.readouterr().err


def test_the_commands_of_the_page_run_and_what_is_learned_is_used(home, opened):
    notes = home / "notes"
    notes.mkdir()
    (notes / "a.md").write_text("The ferry to the island leaves at seven.\n" * 400)
    commands = re.findall(r"^tsm-write (\w+) (.*)$", README, re.M)
    assert [name for name, _ in commands] == ["open", "learn", "learn"]
    spec = PRESETS["tiny"]  # learns in seconds what the shipped one does in minutes
    save_model(home / "start.safetensors", spec, model.initialise(spec, seed=0))
    for name, rest in commands[2:]:
        shorter = rest.replace("--", "--start start.safetensors --", 1).replace("200", "20")
        done = ran(name, *shorter.split())
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 notes, 16,400 bytes" in done.stdout and "$ python -m tsm.training" in done.stdout
    learned = home / "data/tsm-write" / learn.MODEL
    shown = subprocess.run(
        [sys.executable, "-m", "tsm.runtime.describe", "--json", str(learned)],
        capture_output=True,
        check=True,
    )
    assert json.loads(shown.stdout)["verified"]
    pad = opened(home / "diary.txt")
    mapped = Path(f"/proc/{pad.process}/maps").read_text()
    assert str(learned) in mapped
    left(pad)
    for path in re.findall(r"(?:\./|\()((?:apps|docs|runtime|benchmarks)[\w/.-]*)", README):
        assert (ROOT / path).exists(), path
    assert len(README.split()) < 420

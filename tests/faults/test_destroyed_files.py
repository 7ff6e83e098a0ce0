"""Nothing is destroyed by writing a file: what is no regular file is never replaced, what is
private stays private, and a signal or a full disk leaves nothing half-written.

pytest tests/faults/test_destroyed_files.py
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import ROOT, RUNTIME, TEXT, output, python, refused, run

from tsm.runtime import Sampling, StateError, files, load

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


def save_state(_: Path, out: object) -> subprocess.CompletedProcess:
    return run("generate", "--bytes", 5, "--save-state", out)


def compressed(text: Path, out: object) -> subprocess.CompletedProcess:
    return run("compress", text, "--force", "--out", out)


WRITERS = [save_state, compressed]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.skipif(os.geteuid() != 0, reason="root alone makes devices")
def test_a_device_stays_one(writer, text, tmp_path):
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    assert (writer(text, device).returncode, device.is_char_device()) == (0, True)
    assert {path.name for path in tmp_path.iterdir()} == {"text", "null"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_pipe_gets_the_whole_file_and_stays_one(writer, text, tmp_path):
    pipe, whole = tmp_path / "pipe", tmp_path / "whole"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert writer(text, pipe).returncode == 0
    reader.join()
    assert pipe.is_fifo()
    assert writer(text, whole).returncode == 0
    assert len(read[0]) > 50 and read[0][:8] == whole.read_bytes()[:8]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_followed(writer, text, tmp_path):
    link, goal = tmp_path / "link", tmp_path / "folder" / "goal"
    goal.parent.mkdir()
    link.symlink_to("folder/goal")
    for _ in range(2):  # a goal that is not there, and one that is
        assert writer(text, link).returncode == 0
        assert link.is_symlink() and goal.is_file() and not goal.is_symlink()
    assert goal.stat().st_size > 50


def test_weights_are_written_through_a_link(tmp_path):
    link, goal = tmp_path / "link.safetensors", tmp_path / "goal"
    link.symlink_to(goal)
    script, model = ROOT / "training/checkpoint.py", ROOT / "models/shakespeare.safetensors"
    done = python(script, model, link)
    assert (done.returncode, done.stderr) == (0, b"")
    assert link.is_symlink() and goal.stat().st_size > 20_000_000


def test_what_goes_to_dev_stdout_goes_to_the_pipe_or_the_file_behind_it(text, tmp_path):
    wanted = output("compress", text, "--out", "-")
    assert output("compress", text, "--force", "--out", "/dev/stdout") == wanted
    with open(tmp_path / "out", "wb") as out:
        assert run("compress", text, "--out", "/dev/stdout", stdout=out).returncode == 0
    assert (tmp_path / "out").read_bytes() == wanted
    with open(tmp_path / "both", "wb") as out:
        options = ("--bytes", 5, "--seed", 0, "--save-state", "/dev/stdout")
        assert run("generate", *options, stdout=out).returncode == 0
    assert (tmp_path / "both").read_bytes()[5:13] == b"TSMSTATE"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_is_refused_in_one_line(writer, text, tmp_path):
    assert f"{tmp_path}: is a folder, wanted a file" in refused(writer(text, tmp_path))
    assert list(tmp_path.iterdir()) == [text]


def test_a_stream_that_cannot_be_saved_says_so_in_python(tmp_path):
    with load() as model, pytest.raises(StateError, match="is a folder, wanted a file"):
        model.stream().save(tmp_path)


# Permissions


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_text_stays_private_compressed_and_taken_back(text):
    packed, again = Path(f"{text}.tsm"), text.with_name("again")
    text.chmod(0o600)
    output("compress", text)
    output("compress", "--decompress", packed, "--out", again)
    assert [mode(path) for path in (packed, again)] == [0o600, 0o600]
    text.chmod(0o664)
    output("compress", text, "--force")
    assert mode(packed) == 0o664


def test_a_text_is_private_from_its_first_byte(tmp_path):
    with files.written(tmp_path / "file", 0o600) as file:
        file.write(b"a")
        file.flush()
        (unfinished,) = tmp_path.iterdir()
        assert mode(unfinished) == 0o600


def test_a_state_keeps_the_permissions_of_the_one_that_it_replaces(tmp_path):
    state, new = tmp_path / "state", tmp_path / "new"
    state.touch(0o600)
    before = os.umask(0o027)
    try:
        for path in (state, new):
            output("generate", "--bytes", 5, "--save-state", path)
    finally:
        os.umask(before)
    assert (mode(state), mode(new)) == (0o600, 0o640)


def test_a_write_protected_file_stays_as_it_is(tmp_path, monkeypatch):
    protected = tmp_path / "protected"
    protected.touch(0o444)
    # As for everyone but root, who may write there.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError), files.written(protected) as file:
        file.write(b"new")
    assert protected.read_bytes() == b"" and list(tmp_path.iterdir()) == [protected]


# Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_no_half_written_file(number, text, tmp_path):
    text.write_bytes(TEXT * 10_000)
    line = [sys.executable, str(RUNTIME / "compress.py"), str(text)]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not any(tmp_path.glob("text.tsm.*.partial")):
            pass  # until it has begun
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == b""
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_keeps_the_state(number, tmp_path):
    options = ["--seed", "0", "--bytes", "10000000", "--save-state", str(tmp_path / "state")]
    line = [sys.executable, str(RUNTIME / "generate.py"), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(20)
        process.send_signal(number)
        first += process.stdout.read()
        assert (process.wait(60), process.stderr.read()) == (128 + number, b"")
    more = output("generate", "--bytes", 50, "--load-state", tmp_path / "state")
    assert output("generate", "--seed", 0, "--bytes", len(first) + 50) == first + more


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_keeps_a_conversation_that_waits_for_its_next_line(number, tmp_path):
    options = ["--seed", "0", "--interactive", "--bytes", "30"]
    options += ["--save-state", str(tmp_path / "state")]
    line = [sys.executable, str(RUNTIME / "generate.py"), *options]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"ROMEO:\n")
        process.stdin.flush()
        answer = process.stdout.read(31)
        while process.poll() is None:  # the first may come before the answer has quite ended
            process.send_signal(number)
            time.sleep(0.2)
        assert process.returncode == 128 + number
    with load() as model:
        stream = model.load_stream(tmp_path / "state")
        assert stream.recent == b"ROMEO:\n" + answer[:-1]


def test_a_reader_that_leaves_does_not_cost_the_state(tmp_path):
    options = ["--seed", "0", "--bytes", "10000000", "--save-state", str(tmp_path / "state")]
    line = [sys.executable, str(RUNTIME / "generate.py"), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        first = process.stdout.read(20)
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    with load() as model:
        assert model.load_stream(tmp_path / "state").recent.startswith(b"ROMEO:\n" + first)


def test_a_command_that_was_started_deaf_to_a_signal_stays_so():
    code = f"trap '' HUP; {sys.executable} {RUNTIME}/generate.py --seed 0 --bytes 600"
    with subprocess.Popen(["sh", "-c", code], stdout=subprocess.PIPE) as process:
        first = process.stdout.read(1)
        process.send_signal(signal.SIGHUP)  # to the shell
        subprocess.run(["pkill", "-HUP", "-P", str(process.pid)], check=False)
        assert len(first + process.stdout.read()) == 600
        assert process.wait(60) == 0


# A file gets its name whole or not at all


def test_a_file_that_does_not_become_whole_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    with files.written(path) as file:
        file.write(b"old")
    with pytest.raises(KeyError), files.written(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_names_can_be(tmp_path):
    for name in ("a" * 255, "é" * 127):
        with files.written(tmp_path / name) as file:
            file.write(b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with load() as model, files.written(tmp_path / "state") as file:
        file.write(b"half")
        model.stream(Sampling(seed=0)).save(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"half"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_is_replaced_stays_its_owners(tmp_path):
    state = tmp_path / "state"
    state.write_bytes(b"")
    os.chown(state, 12345, 12346)
    state.chmod(0o600)
    with files.written(state) as file:
        file.write(b"new")
    now = state.stat()
    assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (12345, 12346, 0o600)

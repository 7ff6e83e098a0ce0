"""LiteRT with XNNPACK over a file of packed weights: which file it believes.

pytest tests/test_weight_cache.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tsm.export import verify
from tsm.export.tolerance import check
from tsm.runtime import engines, stream
from tsm.runtime.artifact import Artifact, open_artifact
from tsm.runtime.engines import weight_cache
from tsm.runtime.engines.weight_cache import SUFFIX
from tsm.runtime.prompt_cache import read_prompt

ROOT = Path(__file__).parent.parent
TEXT = verify.PASSAGE


def logits(artifact: Artifact, folder: str = "") -> np.ndarray:
    engine = engines.open_engine(artifact, "litert", weight_cache=folder)
    return np.asarray(engine.logits_of(TEXT), np.float32).reshape(-1, 256)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return open_artifact(engines.SHIPPED_MODEL)


@pytest.fixture(scope="module")
def wanted(artifact) -> np.ndarray:
    return logits(artifact)


def only(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_it_is_written_once_and_then_read(artifact, wanted, tmp_path):
    first = logits(artifact, str(tmp_path))
    check("int8 artifact", first, wanted, logits=True)
    path = only(tmp_path)
    about = path.stat()
    assert path.name.startswith(artifact.sha256) and path.suffix == SUFFIX
    np.testing.assert_array_equal(logits(artifact, str(tmp_path)), first)
    assert only(tmp_path) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (about.st_ino, about.st_mtime_ns)


@pytest.mark.parametrize("harm", ["damaged", "cut short", "empty", "something else"])
def test_what_is_not_as_it_was_written_is_made_again(harm, artifact, wanted, tmp_path):
    logits(artifact, str(tmp_path))
    path = only(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "damaged": whole[: len(whole) // 2] + bytes(4096) + whole[len(whole) // 2 + 4096 :],
            "cut short": whole[:-1000],
            "empty": b"",
            "something else": bytes(len(whole)),
        }[harm]
    )
    check("int8 artifact", logits(artifact, str(tmp_path)), wanted, logits=True)
    assert only(tmp_path).read_bytes() == whole


def test_another_models_is_left_alone(artifact, tmp_path):
    other = tmp_path / f"{'0' * 64}-2.3.0-00000000-00000000{SUFFIX}"
    other.write_bytes(b"another model's")
    logits(artifact, str(tmp_path))
    assert other.read_bytes() == b"another model's"
    assert len(list(tmp_path.iterdir())) == 2


def generating(folder: Path, *before: str) -> subprocess.Popen:
    command = [*before, sys.executable, str(ROOT / "runtime" / "generate.py"), "--bytes", "20"]
    command += ["--seed", "0", "--engine", "litert", "--weight-cache", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_processes_at_once_leave_one_and_write_the_same_text(tmp_path):
    started = [generating(tmp_path) for _ in range(3)]
    first, *others = [(*process.communicate(), process.returncode) for process in started]
    assert first[1:] == (b"", 0) and others == [first, first]
    assert only(tmp_path).suffix == SUFFIX


def test_one_that_another_process_removes_meanwhile_is_made_again(monkeypatch, tmp_path):
    def start(path: str) -> None:
        Path(path).write_bytes(b"packed")

    def removed(path: str) -> str:
        if not path.endswith(".partial"):
            os.unlink(path)
        return crc32(path)

    crc32 = weight_cache.file_crc32
    weight_cache.cached(str(tmp_path), "model", 6, start)
    path = only(tmp_path)
    monkeypatch.setattr(weight_cache, "file_crc32", removed)
    weight_cache.cached(str(tmp_path), "model", 6, start)
    assert only(tmp_path) == path and path.read_bytes() == b"packed"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    no_file_above_4_mb = ("sh", "-c", 'ulimit -f 8192; exec "$@"', "sh")
    with generating(tmp_path, *no_file_above_4_mb) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert b"file too large, wanted a folder for packed weights" in err
    assert not list(tmp_path.iterdir())


def test_states_of_other_kernels_are_not_gone_on_from(tmp_path):
    builtin = stream.load(engine="litert")
    xnnpack = stream.load(engine="litert", weight_cache=str(tmp_path / "weights"))
    prompt, prompts = TEXT[:200], tmp_path / "prompts"
    plain = xnnpack.stream()
    plain.feed(prompt)
    read_prompt(builtin, prompt, prompts)
    assert read_prompt(xnnpack, prompt, prompts).logits() == plain.logits()


@pytest.mark.parametrize(
    ("options", "wanted_text"),
    [
        (["--engine", "litert", "--weight-cache", "FILE"], "wanted a folder for packed weights"),
        (["--engine", "litert", "--weight-cache", "FILE/x"], "wanted a folder for packed weights"),
        (["--engine", "native", "--weight-cache", "x"], "wanted engine litert"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(options, wanted_text, tmp_path):
    (tmp_path / "FILE").write_bytes(b"not a folder")
    command = [sys.executable, ROOT / "runtime" / "generate.py", *options, "--bytes", "5"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert wanted_text in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["FILE"]


def test_the_command_says_nothing_of_it(tmp_path):
    command = [sys.executable, ROOT / "runtime" / "generate.py", "--bytes", "5"]
    command += ["--engine", "litert", "--weight-cache", tmp_path / 'a "new"' / "folder"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert only(tmp_path / 'a "new"' / "folder").suffix == SUFFIX

"""Memory, files and damage: everything is given back, and a model that is no model any more ends
in one line.

pytest tests/faults/test_resources.py
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from commands import TEXT, python, refused, run

from tsm.runtime import EngineError, Sampling, StateError, artifact, engines, load

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime"
TFLITE, ONNX = Path(engines.SHIPPED_MODEL), ROOT / "models/shakespeare-int8.onnx"
PATHS = {"native": TFLITE, "litert": TFLITE, "onnx": ONNX}


# Given back


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def opened_files() -> set[str]:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.lexists(link)}


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("kind", engines.ENGINES)
@pytest.mark.parametrize("end", ["collected", "closed", "left"])
def test_a_model_gives_everything_back(kind, end, tmp_path):
    path = Path(shutil.copy(PATHS[kind], tmp_path))

    def use() -> None:
        model = load(path, kind)
        text = model.stream()
        text.feed("ROMEO:\n")
        text.draw()
        if end == "closed":
            model.close()
        if end == "left":
            with model:
                text.draw()

    for _ in range(3):  # until the interpreter holds what it keeps for all models
        use()
    before = resident_bytes()
    for _ in range(12):
        use()
    assert str(path) not in opened_files() and not is_mapped(path)
    assert resident_bytes() - before < 40_000_000  # twelve models that stayed would be over 120


def test_weights_that_are_cached_are_given_back_too(tmp_path):
    for _ in range(3):
        with load(engine="litert", weight_cache=str(tmp_path)) as model:
            model.engine.feed(b"a")
    assert not any(str(tmp_path) in name for name in opened_files())
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_more_models_than_files_may_be_open():
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))\n"
        "from tsm.runtime import load\n"
        "for _ in range(30): load(engine='litert').engine.feed(b'a')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_stream_that_is_dropped_is_collected_at_once():
    model = load()
    text = model.stream()
    text.feed("a")
    dropped = weakref.ref(text)
    del text
    assert dropped() is None
    assert model.stream().logits()


@pytest.mark.parametrize("kind", engines.ENGINES)
def test_a_closed_model_says_so_and_its_streams_can_be_saved(kind):
    with load(PATHS[kind], kind) as model:
        text = model.stream(Sampling(seed=1))
        text.feed("ROMEO:\n")
        text.draw()
    for call in (text.logits, lambda: text.feed("a"), lambda: model.engine.logits_of(b"a")):
        with pytest.raises(EngineError, match="the model is closed, wanted an open one"):
            call()
    again = load(PATHS[kind], kind).load_stream(text.to_bytes())
    with load(PATHS[kind], kind) as model:
        fresh = model.stream(Sampling(seed=1))
        fresh.feed("ROMEO:\n")
        assert bytes(fresh.generate_bytes(5))[1:] == bytes(again.generate_bytes(4))
    model.close()  # again


def test_a_closed_stream_says_so_and_its_model_stays_open():
    model = load()
    with model.stream() as text:
        text.feed("a")
    for call in (text.logits, text.fork, text.to_bytes, lambda: text.feed("a"), text.draw):
        with pytest.raises(StateError, match="stream: closed, wanted an open one"):
            call()
    assert model.stream().logits()


def test_each_engine_says_its_name():
    for kind, path in PATHS.items():
        assert load(path, kind).engine.name == kind
    assert load(lookahead=True).engine.name == "native"


# Damaged


def with_weights(path: Path, out: Path, name: str, value: float) -> Path:
    """The model with one weight of a name (the scale of its first row) changed, sealed again."""
    offset = int(artifact.open_artifact(path).offsets[name][-1])
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = struct.pack("<f", value)
    out.write_bytes(artifact.seal(bytes(data)))
    return out


INNER = ["embed", "blocks.0.mixer.in", "blocks.0.mlp.in"]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "head") for kind in engines.ENGINES),
        # LiteRT's kernels make numbers of these.
        *((kind, name) for kind in ("native", "onnx") for name in INNER),
    ],
)
def test_logits_that_are_no_numbers_end_with_one_line(kind, name, value, tmp_path):
    bad = with_weights(PATHS[kind], tmp_path / f"bad{PATHS[kind].suffix}", name, value)
    engine = load(bad, kind).engine
    data = b"\0ROMEO:\n"  # the first row of `embed`, too
    for call in (lambda: engine.feed(data), lambda: engine.logits_of(data)):
        engine.reset()
        with pytest.raises(EngineError) as refused:
            call()
        assert str(refused.value).startswith(f"{bad}: logits that are not finite, wanted numbers")


@pytest.mark.parametrize("temperature", ["0", "0.8"])
@pytest.mark.parametrize("kind", engines.ENGINES)
def test_the_command_ends_with_that_line_too(kind, temperature, tmp_path):
    bad = with_weights(PATHS[kind], tmp_path / f"bad{PATHS[kind].suffix}", "head", math.nan)
    command = [sys.executable, RUNTIME / "generate.py", bad, "--engine", kind, "--bytes", "20"]
    command += ["--temperature", temperature]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "logits that are not finite" in done.stderr


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(bytes(size))


@pytest.mark.parametrize("change", [overwrite, lambda path: os.truncate(path, 4096)])
@pytest.mark.parametrize("kind", ["native", "litert"])
def test_a_model_overwritten_or_cut_short_while_it_is_read_is_one_line(kind, change, tmp_path):
    path = Path(shutil.copy(TFLITE, tmp_path))
    text = load(path, kind).stream()
    text.feed("ROMEO:\n")
    text.draw()
    change(path)
    with pytest.raises(EngineError) as refused:
        bytes(text.generate_bytes(10))
    assert str(refused.value) == f"{path}: changed while it is read, wanted it left alone"


@pytest.mark.parametrize("kind", engines.ENGINES)
def test_a_model_that_another_takes_the_name_of_goes_on(kind, tmp_path):
    path = Path(shutil.copy(PATHS[kind], tmp_path))
    text = load(path, kind).stream(Sampling(seed=1))
    text.feed("ROMEO:\n")
    (tmp_path / "other").write_bytes(b"another")
    os.replace(tmp_path / "other", path)
    kept = load(PATHS[kind], kind).stream(Sampling(seed=1))
    kept.feed("ROMEO:\n")
    assert bytes(text.generate_bytes(10)) == bytes(kept.generate_bytes(10))


# Full disks, and files that cannot be read


def with_files_of(limit_bytes: int, command: str, *arguments: object, **settings):
    """Runs a command as if the disk had room for files of so many bytes."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)"
    code = f"import os, sys; {limit}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return python("-c", code, RUNTIME / f"{command}.py", *arguments, **settings)


def test_a_full_disk_names_the_temporary_file_of_a_quantile():
    done = with_files_of(4096, "score", "--quantile", "0.9", input=TEXT * 50)
    assert "tsm-score: temporary file in /" in refused(done)


def test_no_temporary_folder_is_named():
    done = with_files_of(0, "score", "--quantile", "0.9", input=TEXT)
    assert "tsm-score: temporary folder: no usable temporary directory" in refused(done)
    done = with_files_of(0, "compress", "--out", "-", input=TEXT)
    assert "tsm-compress: temporary folder: no usable temporary directory" in refused(done)


def test_a_full_disk_names_the_file_that_was_to_be_written(tmp_path):
    packed, state = tmp_path / "packed", tmp_path / "state"
    line = refused(with_files_of(50, "compress", "--out", packed, input=TEXT))
    assert line == f"tsm-compress: {packed}: file too large\n"
    line = refused(run("compress", "--out", "/dev/full", input=TEXT))
    assert line == "tsm-compress: /dev/full: no space left on device\n"
    line = refused(with_files_of(50, "generate", "--bytes", 5, "--save-state", state))
    assert line == f"tsm-generate: {state}: file too large, wanted a file that can be written\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["score", "compress"])
def test_an_input_that_cannot_be_read_is_named(command, tmp_path):
    out = ["--out", tmp_path / "out"] if command == "compress" else []
    for path in ("/proc/self/mem", tmp_path):  # whose first byte is not to be read, and a folder
        assert f"tsm-{command}: {path}: " in refused(run(command, path, *out))
    with open("/proc/self/mem", "rb") as unreadable:
        done = run(command, *out, stdin=unreadable)
    assert f"tsm-{command}: standard input: " in refused(done)
    assert list(tmp_path.iterdir()) == []

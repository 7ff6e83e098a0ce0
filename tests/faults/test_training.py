"""What a training is given by mistake, by bad luck or by an impatient user: one line, and nothing
that was there is lost."""

from __future__ import annotations

import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from commands import shown_by

from tsm.training.checkpoint import read_arrays, write_arrays
from tsm.training.corpora import CORPORA
from tsm.training.data import DataError, open_corpus

ROOT = Path(__file__).parent.parent.parent
TEXT = b"the king speaks and a fool laughs but my lord weeps\n"


def command(data: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "training" / "train.py"), "--data", str(data)),
        *("--out", str(out), "--preset", "tiny", "--steps", "3", "--batch", "2"),
        *("--window", "16", "--eval-windows", "4", "--no-export", *more),
    ]


def run(arguments: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **how)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_bytes(TEXT * 20)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text) -> Path:
    """The folder of a run that has ended."""
    out = tmp_path_factory.mktemp("finished") / "run"
    result = run(command(text, out), umask=0o022)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def copy(tmp_path, finished) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=pytest.fail) for line in lines]  # NaN is no JSON


def one_line(result: subprocess.CompletedProcess[str], message: str, code: int = 2) -> None:
    assert result.returncode == code, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tsm-train: ")


@pytest.mark.parametrize(
    ("engine", "seed"),
    [("jax", 2148), ("jax", 2**64 - 1), ("torch", 1_764_190_000_123_456_789), ("torch", 2**64 - 1)],
)
def test_every_64_bit_seed_trains(tmp_path, text, engine, seed):
    options = "--seed", str(seed), "--engine", engine, "--dropout", "0.1"
    result = run(command(text, tmp_path / "run", *options))
    assert result.returncode == 0, result.stderr


def test_a_seed_beyond_64_bits_is_one_line(tmp_path, text):
    one_line(
        run(command(text, tmp_path / "run", "--seed", str(2**64))), "--seed 18446744073709551616"
    )


def test_files_have_the_mode_of_the_umask(finished):
    for name in ("model.safetensors", "model.json", "checkpoint.safetensors", "metrics.jsonl"):
        assert (finished / name).stat().st_mode & 0o777 == 0o644, name


def test_it_ends_with_what_it_wrote_and_the_next_commands(tmp_path, text):
    result = run(command(text, tmp_path / "a run"))
    lines = result.stderr.split("written:\n")[1].splitlines()
    for name, line in zip(("model.safetensors", "model.json", "checkpoint"), lines, strict=False):
        assert line.startswith(f"  {tmp_path}/a run/{name}")
    evaluate = next(line for line in lines if "evaluate.py" in line).replace("python ", "", 1)
    scored = run(["sh", "-c", f"{sys.executable} {evaluate} --json"])
    assert json.loads(scored.stdout)["text"].startswith(f"{text}, "), scored.stderr


@pytest.mark.filterwarnings("ignore:os.fork", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_names_the_file(tmp_path, text):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    result = run(command(text, tmp_path / "run"), preexec_fn=limit)
    one_line(result, f"{tmp_path}/run/model.safetensors: ")
    assert not list((tmp_path / "run").glob("*partial*"))


def test_a_user_id_without_a_home_finds_the_corpus(tmp_path, monkeypatch):
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "TSM_DATA"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="shakespeare: not in "):
        open_corpus("shakespeare", 16)
    monkeypatch.setenv("TSM_DATA", str(tmp_path))
    (tmp_path / CORPORA["shakespeare"].file).write_bytes(TEXT)
    with pytest.raises(DataError, match=f"{tmp_path}.* SHA-256 "):  # found, and another text
        open_corpus("shakespeare", 16)


def others_may_run_python() -> bool:
    folders = Path(sys.executable).resolve().parents
    return os.getuid() == 0 and all(folder.stat().st_mode & 1 for folder in folders)


@pytest.mark.skipif(not others_may_run_python(), reason="no other user can run this Python")
def test_a_user_without_a_home():
    """Trains where TSM_DATA has the corpus; a file that may not be read is one line."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        secret = Path(folder, "secret")
        secret.write_bytes(TEXT)
        secret.chmod(0o600)
        how: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": [], "cwd": folder}
        environment = {"TSM_DATA": os.environ.get("TSM_DATA", ""), "PATH": os.environ["PATH"]}
        unread = run(command(secret, Path(folder, "a")), env=environment, **how)
        one_line(unread, f"{secret}: permission denied, wanted a readable file")
        trained = run(command(Path("shakespeare"), Path(folder, "b")), env=environment, **how)
        if environment["TSM_DATA"]:
            assert trained.returncode == 0, trained.stderr
        else:
            one_line(trained, "shakespeare: not in ")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: shutil.copy(out / "model.safetensors", out / "checkpoint.safetensors"),
        lambda out: (out / "checkpoint.safetensors").write_bytes(b"hello"),
        lambda out: cut(out / "checkpoint.safetensors"),
        lambda out: append(out / "metrics.jsonl", b"hello\n"),
        lambda out: append(out / "metrics.jsonl", b"[1, 2]\n"),
        lambda out: append(out / "metrics.jsonl", b"\xff\xfe\n"),
        lambda out: (out / "model.json").write_text("[]"),
    ],
    ids=[
        "a model",
        "no safetensors",
        "cut short",
        "no JSON",
        "a list",
        "no UTF-8",
        "a foreign record",
    ],
)
def test_a_foreign_file_in_the_folder_is_one_line(copy, text, spoil):
    spoil(copy)
    before = {path: path.read_bytes() for path in copy.glob("*.*")}
    one_line(run(command(text, copy, "--steps", "6")), str(copy))
    assert before == {path: path.read_bytes() for path in copy.glob("*.*")}


def test_a_line_cut_off_by_a_kill_is_dropped(copy, text):
    append(copy / "metrics.jsonl", b'{"kind": "tr')
    result = run(command(text, copy, "--steps", "6"))
    assert result.returncode == 0, result.stderr
    assert max(line["step"] for line in metrics(copy)) == 6


def test_a_run_that_diverges_keeps_its_last_good_files(tmp_path, text):
    """Its weights are bad one step before its loss is: a checkpoint of every step is none of
    them."""
    out = tmp_path / "run"
    good = run(command(text, out, "--checkpoint-every", "1"))
    assert good.returncode == 0, good.stderr
    names = "checkpoint.safetensors", "model.safetensors", "model.json"
    before = [(out / name).read_bytes() for name in names]
    arrays, metadata = read_arrays(out / "checkpoint.safetensors")
    record = json.loads(metadata["record"])
    record["config"]["adam_learning_rate"] = 1e30
    write_arrays(out / "checkpoint.safetensors", arrays, {**metadata, "record": json.dumps(record)})
    before[0] = (out / "checkpoint.safetensors").read_bytes()
    options = "--steps", "40", "--checkpoint-every", "1", "--adam-learning-rate", "1e30"
    result = run(command(text, out, *options))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the model of step 3 and the checkpoint of step 3 stay" in result.stderr
    assert [(out / name).read_bytes() for name in names] == before
    assert metrics(out)


def test_overfitting_stops_and_keeps_the_best(tmp_path):
    data = tmp_path / "noise"
    data.write_bytes(os.urandom(1000).hex().encode())
    options = "--steps", "400", "--eval-every", "4", "--patience", "3", "--batch", "16"
    result = run(command(data, tmp_path / "run", *options))
    assert result.returncode == 0, result.stderr
    assert "validation has not fallen since step" in result.stderr
    lines = metrics(tmp_path / "run")
    by_step = {x["step"]: x["nats_per_byte"] for x in lines if x["kind"] == "validation"}
    best = min(by_step, key=by_step.__getitem__)
    record = json.loads((tmp_path / "run" / "model.json").read_text())
    assert record["step"] == best and max(by_step) == best + 3 * 4
    assert record["validation_nats_per_byte"] == by_step[best]
    again = run(command(data, tmp_path / "run", *options))  # does not go on by itself
    assert again.returncode == 0 and f"step {max(by_step)} of 400" in again.stderr
    assert metrics(tmp_path / "run") == lines


def interrupted(arguments: list[str], log: Path, ready: Any, wait_s: float) -> tuple[int, str]:
    """Exit code and stderr of a process group that has Ctrl-C once it is ready."""
    with log.open("wb") as errors:
        process = subprocess.Popen(arguments, stderr=errors, start_new_session=True)
    while not ready(log.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    time.sleep(1)  # what its compilers still have to say
    return process.returncode, log.read_text()


def test_ctrl_c_while_it_imports_is_one_line(tmp_path, text):
    out = tmp_path / "run"
    code, errors = interrupted(
        command(text, out), tmp_path / "log", lambda _: (out / "lock").exists(), 0.0
    )
    assert (code, errors) == (130, "tsm-train: interrupted while starting\n")


@pytest.mark.parametrize("options", [["--compiled"], ["--engine", "jax"]])
def test_ctrl_c_while_it_compiles_is_one_line(tmp_path, text, options, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "0")
    arguments = command(text, tmp_path / "run", *options)
    code, errors = interrupted(
        arguments, tmp_path / "log", lambda errors: "compiling, about" in errors, 1.0
    )
    assert code == 130
    assert errors.splitlines()[-1] == "tsm-train: interrupted while starting"
    assert "Traceback" not in errors and len(errors.splitlines()) < 8


def test_ctrl_c_while_it_exports_is_one_line(tmp_path, text):
    arguments = [x for x in command(text, tmp_path / "run") if x != "--no-export"]
    code, errors = interrupted(
        arguments, tmp_path / "log", lambda errors: "exporting" in errors, 0.5
    )
    assert code == 130 and "Traceback" not in errors
    told = f"tsm-train: interrupted; {tmp_path}/run/model.safetensors is written"
    assert any(line.startswith(told) for line in errors.splitlines())
    assert not list((tmp_path / "run").glob("model-int8*"))


def test_samples_cannot_steer_a_terminal(tmp_path):
    data = tmp_path / "screens"
    data.write_bytes(b"\x1b[2J" * 600)
    options = "--steps", "60", "--eval-every", "60", "--warmup-steps", "5"
    shown = shown_by(command(data, tmp_path / "run", *options), stderr=subprocess.STDOUT).stdout
    assert rb"\x1b[2J" in shown and b"\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "100"], "--width 100: wanted a multiple of 8"),
        (["--channels", "24"], "--channels 24: wanted a multiple of 16"),
        (["--channels", "100"], "--channels 100: wanted a multiple of 8, the heads"),
        (["--layers", "-1"], "--layers -1: wanted 0 or more"),
        (["--preset", "hybrid", "--layers", "3"], "spec: 6 mixers, wanted 1 or 3 as layers"),
        (["--threads", "0"], "--threads 0: wanted 1 to "),
        (["--patience", "-1"], "--patience -1: wanted 0 or more"),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(tmp_path, text, options, message):
    one_line(run(command(text, tmp_path / "run", *options)), message)
    assert not (tmp_path / "run").exists()


def test_a_shape_of_ones_own(tmp_path, text):
    options = "--width", "64", "--layers", "3", "--channels", "48"
    result = run(command(text, tmp_path / "run", *options))
    assert result.returncode == 0, result.stderr
    parameters = json.loads((tmp_path / "run" / "model.json").read_text())["parameters"]
    layer = 4 * 48 * 64 + 8 * 64 * 64 + 4 * 64 + 48  # projections, MLP, convolution, radius
    assert parameters == 2 * 256 * 64 + 3 * layer

"""Exporting models, and to places, that broke an exporter of this or a comparable project.

pytest tests/faults/test_exporters.py
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from specs import noisy_weights

from tsm.export import layout, to_onnx, to_tflite
from tsm.runtime import load
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import native
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import ModelSpec, SpecError

ROOT = Path(__file__).parents[2]
EXPORTERS = {"tflite": to_tflite, "onnx": to_onnx}
BEAM = ModelSpec(
    mixer="beam", width=64, layers=1, heads=2, value_width=16, switches={"rotation": False}
)
SHAPES = {
    "mlp_ratio 2.7": {"mlp_ratio": 2.7},  # 173 hidden units
    "mlp_ratio 8/3": {"mlp_ratio": 8 / 3},
    "mlp_ratio 0.01": {"mlp_ratio": 0.01},  # 1 hidden unit
    "width 8": {"width": 8},
    "compression 9": {"compression": 9},
    "4 channels": {"heads": 1, "value_width": 4},
}


def zeros(spec: ModelSpec) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in model.initialise(spec, 0).items()}


def equal_layers(spec: ModelSpec) -> dict[str, np.ndarray]:
    """The second layer has the weights of the first, and the head those of the embedding."""
    values = noisy_weights(spec)
    tied = {name: values[name.replace("blocks.1", "blocks.0")] for name in values}
    return tied | {"head": values["embed"]}


@pytest.fixture
def saved(tmp_path):
    def save(spec: ModelSpec, values: dict[str, np.ndarray]) -> Path:
        save_model(tmp_path / "model.safetensors", spec, values)
        return tmp_path / "model.safetensors"

    return save


def exported(suffix: str, path: Path, *arguments: object) -> Path:
    assert EXPORTERS[suffix].main([str(path), "--no-prune", *map(str, arguments)]) == 0
    return path.with_name(f"model-int8.{suffix}")


def exporter(suffix: str, *arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    """As a user runs it."""
    command = [sys.executable, str(ROOT / f"export/to_{suffix}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Its one line."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


# Shapes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_shape_that_the_c_engine_does_not_run_is_exported_for_the_other_engine(
    saved, suffix, shape
):
    spec = BEAM.replace(**SHAPES[shape])
    artifact = exported(suffix, saved(spec, noisy_weights(spec)))
    assert open_artifact(artifact).offsets == {}
    with load(str(artifact)) as opened:
        assert opened.engine.name != "native"
        assert np.isfinite(opened.engine.feed(b"To be, or not")).all()


def test_python_and_c_agree_on_what_the_c_engine_runs():
    library, runs = native._library(), []
    for vocabulary, width, channels, mlp_ratio, compression, layers in itertools.product(
        (8, 16, 100, 256, 300), (8, 16, 20, 64, 16392), (8, 16, 20), (0.01, 0.25, 2.7, 4.0),
        (1, 8, 9), (1, 257),
    ):  # fmt: skip
        spec = BEAM.replace(
            vocabulary=vocabulary, width=width, heads=1, value_width=channels,
            mlp_ratio=mlp_ratio, compression=compression, layers=layers,
        ) if round(mlp_ratio * width) else BEAM.replace(vocabulary=8)  # fmt: skip
        sizes = native._Spec(**native._sizes(spec.to_dict(), "int8"))
        runs.append(library.tsm_offset_count(ctypes.byref(sizes)) > 0)
        assert native.computes(spec.to_dict(), "int8") == runs[-1], spec
    assert any(runs) and not all(runs)


@pytest.mark.parametrize("vocabulary", [100, 300])
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_vocabulary_that_no_engine_runs_is_refused(saved, capfd, suffix, vocabulary):
    spec = BEAM.replace(vocabulary=vocabulary)
    path = saved(spec, noisy_weights(spec))
    assert EXPORTERS[suffix].main([str(path)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"{path}: vocabulary {vocabulary}, wanted 256" in said


def test_a_state_without_values_is_refused(saved, capfd):
    spec = BEAM.replace(compression=1)
    assert to_tflite.main([str(saved(spec, noisy_weights(spec)))]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "state history of shape" in said


@pytest.mark.parametrize(
    ("switches", "name"),
    [
        ({"mlp_ratio": 0.001}, "one hidden unit"),
        ({"mixer": "linformer", "context": 5}, "bias.slot"),
        ({"mixer": "linformer", "linformer_block": 3}, "compress"),
        ({"mixer": "gpt2", "width": 65}, "a multiple of 2 heads"),
    ],
)
def test_a_spec_of_weights_without_values_is_refused(switches, name):
    with pytest.raises(SpecError, match=name):
        BEAM.replace(**switches)


# Weights


# Random weights in 4 bits differ by too much for the exporter.
@pytest.mark.parametrize(
    ("quantization", "make"), [("int8", zeros), ("int8", equal_layers), ("int4", zeros)]
)
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_equal_weights_are_told_apart(saved, suffix, quantization, make):
    spec = BEAM.replace(layers=2)
    values = make(spec)
    path = saved(spec, values)
    out = path.with_name(f"equal.{suffix}")
    exported(suffix, path, "--quantize", quantization, "--out", out)
    offsets, data = open_artifact(out).offsets, out.read_bytes()
    for name, bits in layout.bits(spec, quantization).items():
        for offset, part in zip(
            offsets[name], layout.quantize_rows(values[name], bits), strict=True
        ):
            assert data[int(offset) :].startswith(part.tobytes()), name


# What is said


def test_costly_quantization_is_warned_of(saved, capfd):
    """Random weights, in 4 bits: the hardest case."""
    path = saved(BEAM, {name: 2 * value for name, value in noisy_weights(BEAM).items()})
    for quantization in ("int4", "none"):
        command = [str(path), "--quantize", quantization, "--json"]
        assert to_tflite.main(command) == 0
        out, err = capfd.readouterr()
        report = json.loads(out)
        if quantization == "none":
            assert "mean_kl_nats" not in report and err == ""
        else:
            assert report["mean_kl_nats"] > 0.02
            assert err.count("\n") == 1
            assert "warning: int4 costs" in err and "--quantize int8 or none" in err


def test_the_cost_is_measured_on_the_text_that_is_given(saved, capfd, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"x" * 5000 + b"All the world's a stage" * 100)
    path = saved(BEAM, noisy_weights(BEAM))
    exported("tflite", path, "--data", text)
    said = capfd.readouterr().out
    assert f"on the last 4,096 bytes of {text}" in said and "KL 0.0" in said
    assert f"generate {path.with_name('model-int8.tflite')}" in said.replace(".py", "")
    text.write_bytes(b"x")
    assert to_tflite.main([str(path), "--data", str(text)]) == 2
    assert capfd.readouterr().err.endswith("1 bytes, wanted at least 2 to measure on\n")
    for missing in (tmp_path / "missing", tmp_path):
        assert to_tflite.main([str(path), "--data", str(missing)]) == 2
        assert str(missing) in capfd.readouterr().err


# Places


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The weights of a model, for exporters run by their path."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, BEAM, noisy_weights(BEAM))
    return path


def test_links_devices_and_pipes_stay_what_they_are(small, tmp_path, capfd):
    """In one process, for TensorFlow takes long to load: what stands at each place stays."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    link, pipe, device = (tmp_path / name for name in ("link", "pipe", "device"))
    link.symlink_to(target)
    os.mkfifo(pipe)
    assert to_tflite.main([str(small), "--out", str(link)]) == 0
    assert link.is_symlink() and open_artifact(target).quantization == "int8"
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        assert to_tflite.main([str(small), "--out", str(pipe)]) == 0
        assert reader.stdout.read() == target.read_bytes()
    assert pipe.is_fifo()
    if os.geteuid() == 0:
        subprocess.run(["mknod", str(device), "c", "1", "3"], check=True)
        assert to_tflite.main([str(small), "--out", str(device)]) == 0
        assert device.is_char_device()
    assert sorted(p.name for p in tmp_path.iterdir() if p != device) == ["link", "pipe", "target"]


def test_standard_output_gets_the_artifact_and_nothing_else(small, tmp_path):
    command = [sys.executable, str(ROOT / "export/to_tflite.py"), str(small)]
    done = subprocess.run([*command, "--out", "/dev/stdout"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "model.tflite").write_bytes(done.stdout)
    assert open_artifact(tmp_path / "model.tflite").quantization == "int8"
    assert b"/dev/stdout" in done.stderr


@pytest.mark.parametrize(
    "place", ["folder", "no such folder/x", "socket", "n" * 300, "the model itself", "sealed/x"]
)
def test_a_place_where_nothing_can_be_written_is_refused_before_the_work(
    small, tmp_path, capfd, monkeypatch, place
):
    out = tmp_path / place
    if place == "folder":
        out.mkdir()
    elif place == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(out))
    elif place == "the model itself":
        out = tmp_path / "model.safetensors"
        shutil.copy(small, out)
    elif place == "sealed/x":
        out.parent.mkdir(mode=0o500)
        # As for everyone but root, who may write there.
        monkeypatch.setattr(os, "access", lambda path, _: Path(path) != out.parent)
    assert to_tflite.main([str(out if "itself" in place else small), "--out", str(out)]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and str(out) in said
    assert "itself" not in place or out.read_bytes() == small.read_bytes()


def test_a_full_disk_is_one_line_that_names_it(small, tmp_path, capfd, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "x.tflite"
    out.write_bytes(b"old")
    assert to_tflite.main([str(small), "--out", str(out)]) == 2
    assert (
        capfd.readouterr().err.splitlines()[-1] == f"tsm-to-tflite: {out}: no space left on device"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", EXPORTERS)
@pytest.mark.parametrize("room", ["64 KB a file", "none"])
def test_a_temporary_folder_without_room_is_one_line(small, tmp_path, suffix, room):
    folder, out = tmp_path / "temporary", tmp_path / "out"
    limit = ""
    if room != "none":
        folder.mkdir()
        limit = "ulimit -f 64; "  # for which the system answers as for a full disk, to any user
    only = f"import tempfile; tempfile._candidate_tempdir_list = lambda: [{str(folder)!r}]"
    (tmp_path / "sitecustomize.py").write_text(only)
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment["PYTHONPATH"] = f"{tmp_path}:{environment.get('PYTHONPATH', '')}"
    script = [sys.executable, str(ROOT / f"export/to_{suffix}.py"), str(small), "--out", str(out)]
    limited = ["bash", "-c", f'{limit}exec "$@"', "bash", *script]
    done = subprocess.run(limited, env=environment, capture_output=True, text=True, check=False)
    said = refused(done)
    assert "temporary" in said or str(folder) in said
    assert not out.exists()


# Packages and interrupts

HIDDEN = {"tflite": ("tensorflow", "ai_edge_quantizer", "jax", "numpy"), "onnx": ("torch", "onnx")}


@pytest.mark.parametrize(("suffix", "package"), [(s, p) for s in HIDDEN for p in HIDDEN[s]])
def test_a_missing_package_is_one_line_that_names_the_extra(small, tmp_path, suffix, package):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import sys
        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {package!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Missing())
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    if inherited := os.environ.get("PYTHONPATH"):
        environment["PYTHONPATH"] += os.pathsep + inherited
    said = refused(exporter(suffix, small, "--out", tmp_path / "x", env=environment))
    assert said.startswith(f"tsm-to-{suffix}: {package} is not installed, wanted: ")
    assert f"[export-{suffix}]" in said
    helped = exporter(suffix, "--help", env=environment)
    if helped.returncode:  # --help says it too, or works
        assert f"[export-{suffix}]" in refused(helped)


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 1), (signal.SIGTERM, 3), (signal.SIGINT, 8)]
)
@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_signal_at_any_time_is_at_most_one_line(small, tmp_path, suffix, number, seconds):
    """While Python starts, packages are imported, the model converted: whatever that time hits."""
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / f"export/to_{suffix}.py"), str(small), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(seconds)
        process.send_signal(number)
        printed, said = process.communicate()
    if process.returncode == 0:  # it was faster
        assert out.exists()
        return
    assert process.returncode in (128 + number, -number)
    assert said.count(b"\n") <= 1, said
    done = [out] if printed else []  # and about to end
    assert list(tmp_path.iterdir()) == done and printed.startswith(f"{out}: ".encode() * len(done))

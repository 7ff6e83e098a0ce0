"""runtime/ as a device meets it: carried away alone, and in little memory.

pytest tests/test_device.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import ai_edge_litert
import pytest
from commands import ONNX, ROOT, RUNTIME, TEXT, TFLITE, generated, python, refused


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Path:
    """The folder under another name, without the compiled engine, and beside it, `site`, where
    packages may be put."""
    folder = tmp_path_factory.mktemp("device") / "my model"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def carried(folder: Path, packages: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """Runs the copy under a Python that sees the standard library and `packages` alone."""
    installed = Path(ai_edge_litert.__file__).parent.parent
    site = folder.parent / ("site" + "+".join(packages).replace("*", ""))
    site.mkdir(exist_ok=True)
    for package in packages:
        for source in installed.glob(package):
            if not (site / source.name).exists():
                (site / source.name).symlink_to(source)
    environment = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
    return python("-S", folder / "generate.py", *arguments, env=environment, cwd="/")


FEW = ("--bytes", "60", "--temperature", "0")


def test_the_folder_alone_with_one_interpreter_generates(alone):
    done = carried(alone, ["ai_edge_litert", "ai_edge_litert-*"], *FEW)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert done.stdout == generated(*FEW, "--engine", "litert")


def test_the_folder_alone_with_the_compiled_engine_generates(tmp_path):
    folder = tmp_path / "device"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = carried(folder, [], *FEW)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert done.stdout == generated(*FEW, "--engine", "native")


def test_litert_of_another_version_runs_through_its_own_interpreter(alone):
    packages = ["ai_edge_litert", "numpy", "numpy.libs"]  # its version is not to be seen
    done = carried(alone, packages, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"].encode() == generated(*FEW, "--engine", "litert")
    done = carried(alone, packages[:1], *FEW)  # which needs NumPy, so it is the one that ran
    assert "numpy" in refused(done)


@pytest.mark.parametrize("model", [TFLITE, ONNX])
def test_without_an_interpreter_it_says_what_to_install(alone, model):
    done = carried(alone, [], str(model))
    assert "pip install" in refused(done)


@pytest.mark.parametrize("name", sorted(path.stem for path in RUNTIME.glob("*.py")))
def test_every_file_imports_on_the_standard_library_alone(name):
    code = f"import sys, runtime.{name}; print(*sys.modules)"
    done = python("-S", "-c", code, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert not {b"numpy", b"onnxruntime", b"ai_edge_litert"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    [["-m", "tsm.runtime.generate"], ["-c", "import tsm.runtime.generate as g; g.main()"]],
)
def test_it_runs_as_an_installed_module_too(command, tmp_path):
    done = python(*command, *FEW, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", generated(*FEW))


def test_the_folder_alone_with_the_compiled_engine_does_all_of_it(tmp_path):
    folder, text = tmp_path / "device", tmp_path / "text"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text.write_bytes(TEXT)
    for line in (
        ["compress.py", text],
        ["compress.py", "-d", f"{text}.tsm", "--out", f"{text}.back"],
        ["score.py", text],
        ["describe.py"],
        ["bench.py", "--longest", "10", "--repeats", "1", "--bytes", "2"],
    ):
        path = ["-S", "-W", "error", folder / line[0], *line[1:]]
        done = python(*path, env={"PATH": os.environ["PATH"]}, cwd="/")
        assert (done.returncode, done.stderr) == (0, b"")
    assert Path(f"{text}.back").read_bytes() == TEXT


PEAK_RSS_LIMIT_BYTES = 56_000_000  # the project's claim


STREAM = """
import array, json, math, re, sys
sys.path.insert(0, sys.argv[1])
import runtime

model, measured = runtime.load(), []
text = model.stream()
text.feed("ROMEO:")
for count, byte in enumerate(text.generate_bytes(20_000), 1):
    if count in (1_000, 2_000, 20_000):
        status = open("/proc/self/status").read()
        measured += [int(re.search(name + r":\\s+(\\d+) kB", status)[1]) * 1024
                     for name in ("VmHWM", "VmRSS")]
state = array.array("f", b"".join(model.engine.get_state().values()))
print(json.dumps([measured, all(map(math.isfinite, state)), max(map(abs, state)),
                  "numpy" in sys.modules]))
"""


def test_a_long_stream_stays_finite_in_memory_that_does_not_grow():
    done = python("-c", STREAM, ROOT)
    measured, finite, largest, numpy_loaded = json.loads(done.stdout)
    peak_at_1000_bytes, _, _, rss_at_2000_bytes, peak, rss = measured
    assert peak_at_1000_bytes <= PEAK_RSS_LIMIT_BYTES
    assert peak <= PEAK_RSS_LIMIT_BYTES
    assert rss - rss_at_2000_bytes < 500_000
    assert finite and largest < 1e4
    assert not numpy_loaded


def test_the_command_itself_keeps_to_the_limit():
    done = json.loads(generated("--bytes", 1000, "--json"))
    assert done["peak_rss_bytes"] <= PEAK_RSS_LIMIT_BYTES


LEAN = """
import sys
sys.path.insert(0, sys.argv[1])
if len(sys.argv) > 2:
    from runtime import load
    stream = load(sys.argv[2], "native").stream()
    for _ in stream.generate(10_000):
        pass
with open("/proc/self/status") as lines:
    print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""


def test_it_takes_little_beside_the_interpreter_and_the_model():
    """Measured: 3.7 MB through the Python API, for the library, its calls and the standard
    library's modules; 5.2 MB by the command, which has argparse too."""
    model = RUNTIME / "shakespeare-int8.tflite"
    idle, from_python = (
        int(python("-S", "-c", LEAN, ROOT, *given).stdout) for given in ((), (model,))
    )
    arguments = ["--engine", "native", "--bytes", 10_000, "--json"]
    report = json.loads(python("-S", RUNTIME / "generate.py", *arguments).stdout)
    assert from_python - idle - model.stat().st_size < 4_200_000
    assert report["peak_rss_bytes"] - idle - model.stat().st_size < 5_800_000

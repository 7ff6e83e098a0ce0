"""What is shipped is whole, starts every way it can be started, and brings nothing heavy along.

pytest tests/test_packaging.py
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
PACKAGES = ["training", "export", "runtime"]
# What `pip install .` leaves in a folder, and what Python does.
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
SOURCES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "build" not in path.parts
)
TSM = Path("runtime/package/__init__.py")  # installed as tsm/__init__.py
DEVICE = {  # commands of the runtime, which is also a wheel of its own
    "tsm-generate": "runtime/generate.py",
    "tsm-bench": "runtime/bench.py",
    "tsm-score": "runtime/score.py",
    "tsm-describe": "runtime/describe.py",
    "tsm-compress": "runtime/compress.py",
    "tsm-complete": "runtime/complete.py",
}
EXTRA_OF = {  # of the others, and which extra each wants
    "tsm-train": ("training/train.py", "train"),
    "tsm-report": ("training/report.py", "train"),
    "tsm-evaluate": ("training/evaluate.py", "train"),
    "tsm-tasks": ("training/tasks.py", "train"),
    "tsm-to-tflite": ("export/to_tflite.py", "export-tflite"),
    "tsm-to-onnx": ("export/to_onnx.py", "export-onnx"),
}
SCRIPTS = {name: path for name, (path, _) in EXTRA_OF.items()} | DEVICE
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEVICE_PYPROJECT = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
VERSION = runpy.run_path(str(ROOT / "runtime/version.py"))["__version__"]
MODEL = ROOT / "runtime/shakespeare-int8.tflite"
# Nothing of the surroundings that could lend a bare Python the packages that it lacks.
BARE = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: object, **settings) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def dotted(source: Path) -> str:
    return ".".join(("tsm", *source.with_suffix("").parts)).removesuffix(".__init__")


def copied(folder: Path, *packages: str) -> Path:
    """These folders of the project in another one, without models."""
    for package in packages:
        without = shutil.ignore_patterns("*.tflite", "*.onnx")
        ignored = lambda *where: LEFT_BEHIND(*where) | without(*where)  # noqa: E731, B023
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    return folder


def bare_environment(home: Path, wheel: Path) -> Path:
    """The bin folder of an environment with the wheel in it and nothing else, not even pip."""
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", wheel)
    return home / "bin"


# The wheels: of the project, and of the runtime for devices


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves build/lib behind, whose stale files enter the next one."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=LEFT_BEHIND)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def device_wheel(tmp_path_factory) -> Path:
    """By `make wheel`, in a folder that holds nothing but what it needs."""
    copy = tmp_path_factory.mktemp("device")
    shutil.copytree(ROOT / "runtime", copy / "runtime", ignore=LEFT_BEHIND)
    shutil.copytree(ROOT / "requirements", copy / "requirements")
    for name in ("Makefile", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run("make", "-s", "wheel", f"PYTHON={sys.executable}", cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture(scope="module")
def device(device_wheel, tmp_path_factory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("venv"), device_wheel)


def contents(wheel: Path, *packages: str) -> tuple[set[str], set[str]]:
    """(the files that a wheel holds, those that it should)."""
    sources = [path for path in SOURCES if path.parts[0] in packages and path != TSM]
    # The library, for any Python, since it binds to none; and what another machine makes it from.
    sources_in_c = [path.relative_to(ROOT) for path in (ROOT / "runtime/native").glob("*.[ch]")]
    native = ["runtime/native/libtsm.abi3.so", *sources_in_c]
    other = ["__init__.py", "runtime/py.typed", MODEL.relative_to(ROOT)]
    other += ["training/report.html"] if "training" in packages else []
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert any(name.endswith("licenses/LICENSE") for name in names)
    found = {name for name in names if ".dist-info/" not in name}
    return found, {f"tsm/{path}" for path in [*sources, *native, *other]}


def test_the_wheel_holds_every_module_and_artifact_once_and_nothing_else(wheel):
    found, wanted = contents(wheel, *PACKAGES)
    assert found == wanted
    assert wheel.name.startswith("tsm-") and "-cp39-abi3-" in wheel.name


def test_the_wheel_for_devices_holds_the_runtime_and_one_model(device_wheel):
    found, wanted = contents(device_wheel, "runtime")
    assert found == wanted
    assert device_wheel.stat().st_size <= MODEL.stat().st_size + 1_000_000
    assert device_wheel.name.startswith(f"tsm_runtime-{VERSION}-cp39-abi3-")
    if sys.platform == "linux":
        assert re.search(r"-(many|musl)linux_\d+_\d+_", device_wheel.name)


def test_on_a_device_the_wheel_generates_what_the_folder_does(device, tmp_path):
    options = ("--bytes", 20, "--seed", 1, "--engine", "native")
    text = run(device / "tsm-generate", *options, env=BARE, cwd=tmp_path)
    assert len(text) >= 20
    assert text == run(sys.executable, ROOT / "runtime/generate.py", *options)
    assert {path.name for path in device.glob("tsm-*")} == DEVICE.keys()


def test_everywhere_the_version_is_the_same(installed, device, tmp_path):
    code = "import tsm, tsm.runtime; print(tsm.__version__, tsm.runtime.__version__)"
    for python in (installed / "python", device / "python", sys.executable):
        assert run(python, "-c", code, cwd=tmp_path) == f"{VERSION} {VERSION}\n"
    for source in SCRIPTS.values():
        assert run(sys.executable, ROOT / source, "--version").split()[1:] == [VERSION]
    for script in DEVICE:
        assert run(device / script, "--version", env=BARE) == f"{script} {VERSION}\n"


def test_both_wheels_are_described_alike():
    """runtime/pyproject.toml repeats what it cannot import."""
    full, device = PYPROJECT["project"], DEVICE_PYPROJECT["project"]
    for name in ("requires-python", "license", "dependencies"):
        assert device[name] == full[name], name
    for extra, needs in device["optional-dependencies"].items():
        assert needs == EXTRAS[extra], extra
    assert device["scripts"] == {name: full["scripts"][name] for name in DEVICE}
    (library,), (full_library,) = (
        pyproject["tool"]["setuptools"]["ext-modules"]
        for pyproject in (DEVICE_PYPROJECT, PYPROJECT)
    )
    paths = {name: [f"runtime/{path}" for path in library[name]] for name in ("sources", "depends")}
    assert library | paths == full_library


def test_the_wheel_says_what_it_is_and_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.9\n" in metadata
    needs = [Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", metadata, re.M)]
    wanted = {
        extra: {n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})}
        for extra in ("", "tflite", "onnx")
    }
    assert wanted == {"": set(), "tflite": {"ai-edge-litert"}, "onnx": {"onnxruntime", "numpy"}}


def test_installed_without_dependencies_it_starts(installed, tmp_path):
    usage = run(installed / "tsm-generate", "--help", env=BARE, cwd=tmp_path)
    assert usage.startswith("usage: ")
    run(installed / "python", "-m", "tsm.runtime.generate", "--help", env=BARE, cwd=tmp_path)
    assert {path.name for path in installed.glob("tsm-*")} == SCRIPTS.keys()


@pytest.mark.parametrize("script", EXTRA_OF)
def test_without_its_packages_a_command_names_the_extra(script, installed, tmp_path):
    source, extra = EXTRA_OF[script]
    for command in ([installed / script], [installed / "python", ROOT / source]):
        for options in ([], ["--help"]):
            done = subprocess.run(
                [*command, *options], env=BARE, cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 2 and done.stdout == ""
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"{script}: ") and f"'.[{extra}]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "extra", "command"),
    [
        ("jax", "train-jax", "training.train --engine jax --data TEXT --out out --steps 1"),
        ("torch", "train", "training.train --data TEXT --out out --steps 1"),
        ("torch", "train", "training.evaluate MODEL --data TEXT"),
        ("tensorflow", "export-tflite", "export.to_tflite MODEL --out x.tflite"),
        ("onnxscript", "export-onnx", "export.to_onnx MODEL --out x.onnx"),
    ],
)
def test_another_extra_s_packages_are_not_enough(missing, extra, command, tmp_path):
    """The framework that a command imports late, where some other extra is installed."""
    text, weights = tmp_path / "text", tmp_path / "model.safetensors"
    text.write_bytes(bytes(range(256)) * 16)
    save_model(weights, PRESETS["tiny"], model.initialise(PRESETS["tiny"], 0))
    module, *arguments = command.split()
    places = {"TEXT": str(text), "MODEL": str(weights)}
    arguments = [places.get(argument, argument) for argument in arguments]
    code = f"import sys; sys.modules[{missing!r}] = None; from tsm.{module} import main; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(main({arguments}))"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("tsm-") and f"{missing} is not installed" in line
    assert f"'.[{extra}]'" in line and "Traceback" not in done.stderr


def test_no_extra_brings_the_frameworks_of_another():
    frameworks = {"torch", "jax", "tensorflow-cpu"}
    assert {extra: brought(extra) & frameworks for extra in EXTRAS if extra != "dev"} == {
        "tflite": set(),
        "onnx": set(),
        "grammar": set(),
        "model": set(),
        "data": set(),
        "train": {"torch"},
        "train-jax": {"jax"},
        "export-tflite": {"jax", "tensorflow-cpu"},
        "export-onnx": {"torch"},
    }


def brought(extra: str) -> set[str]:
    """The names of the packages that an extra asks for, by itself and by those that it names."""
    needs = list(map(Requirement, EXTRAS[extra]))
    inner = [brought(name) for need in needs if need.name == "tsm" for name in need.extras]
    return {need.name for need in needs if need.name != "tsm"}.union(*inner)


# Starting


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts_as_path_module_and_command(script, tmp_path):
    """From another folder, so that nothing is found only because it lies nearby."""
    source = Path(SCRIPTS[script])
    assert PYPROJECT["project"]["scripts"][script] == f"{dotted(source)}:main"
    for command in (
        [sys.executable, ROOT / source],
        [sys.executable, "-m", dotted(source)],
        [Path(sys.executable).with_name(script)],
    ):
        assert run(*command, "--help", cwd=tmp_path).startswith("usage: ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_copy_that_is_run_by_path_is_what_runs(script, tmp_path):
    """Also where another copy of the project is installed, as it is here."""
    copy = copied(tmp_path / "a copy, edited", *PACKAGES)
    (copy / "runtime/version.py").write_text('__version__ = "edited"\n')
    linked = tmp_path / "linked"
    linked.symlink_to(copy)
    alone = tmp_path / "alone"
    alone.symlink_to(copy / SCRIPTS[script])
    for path in (copy / SCRIPTS[script], linked / SCRIPTS[script], alone):
        printed = run(sys.executable, "-W", "error::DeprecationWarning", path, "--version", cwd="/")
        assert printed.split()[1:] == ["edited"]


def test_an_edited_source_of_the_training_has_its_effect(tmp_path):
    copy = copied(tmp_path, *PACKAGES)
    with open(copy / "training/spec.py", "a") as file:
        file.write('\nPRESETS["edited"] = PRESETS["tiny"]\n')
    text = tmp_path / "text"
    text.write_bytes(bytes(range(256)) * 8)
    out = tmp_path / "run"
    options = ["--preset", "edited", "--data", text, "--out", out, "--steps", 1, "--batch", 2]
    options += ["--window", 16, "--eval-windows", 2, "--no-export"]
    run(sys.executable, copy / "training/train.py", *options)
    assert (out / "model.safetensors").exists()


def test_no_file_hides_a_library():
    """`python export/x.py` puts export/ first on sys.path: export/onnx.py would be `onnx`."""
    taken = sys.stdlib_module_names | packages_distributions().keys()
    beside = {Path(source).parent for source in SCRIPTS.values()}
    stems = {path.stem for path in SOURCES if path.parent in beside} - {"__init__"}
    assert stems & taken == set()


# The runtime


def test_importing_the_runtime_loads_the_standard_library_only():
    """Import-linter cannot tell an import on top of a module from a lazy one; this can."""
    library = [path for path in SOURCES if path.parts[0] == "runtime"]
    modules = [dotted(path) for path in library if path != TSM and path.stem != "by_path"]
    code = f"import sys; before = set(sys.modules); import {', '.join(modules)}; "
    loaded = run(sys.executable, "-c", code + "print(*(set(sys.modules) - before))").split()
    assert set(modules) <= set(loaded)
    tops = {name.partition(".")[0] for name in loaded}
    assert tops - sys.stdlib_module_names == {"tsm"}


def test_the_runtime_needs_no_newer_python_than_3_9():
    """Read off the source, so that it holds on machines that have no old Python."""
    vermin = Path(sys.executable).with_name("vermin")
    run(vermin, "-t=3.9-", "--no-tips", "-vvv", ROOT / "runtime")


def pythons() -> list[str]:
    """One interpreter of each version from 3.9 on that this machine has; always this one."""
    folders = [*os.environ["PATH"].split(os.pathsep), *Path.home().glob(".pyenv/versions/3.*/bin")]
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for folder in map(Path, folders):
        for path in folder.glob("python3.*"):
            if re.fullmatch(r"python3\.(9|1\d)", path.name) and path.parent.name != "shims":
                found.setdefault(path.name.removeprefix("python"), str(path))
    return sorted(found.values())


@pytest.mark.parametrize("python", pythons())
def test_the_runtime_folder_starts_alone_under_every_python_here(python, tmp_path):
    """By its path, through links, and as a package under the folder's own name."""
    folder = copied(tmp_path, "runtime").joinpath("runtime").rename(tmp_path / "on_a_device")
    linked = tmp_path / "linked to it"
    linked.symlink_to(folder)
    for source in folder.rglob("*.py"):
        run(python, "-I", "-S", "-W", "error", "-m", "py_compile", source, env=BARE)
    for script, source in DEVICE.items():
        name = Path(source).name
        alone = tmp_path / script
        alone.symlink_to(folder / name)
        for path in (folder / name, linked / name, alone):
            usage = run(python, "-S", "-W", "error", path, "--help", env=BARE, cwd="/")
            assert usage.startswith(f"usage: {script} ")
        module = ["-m", f"on_a_device.{Path(name).stem}"]
        usage = run(python, "-S", "-W", "error", *module, "--help", env=BARE, cwd=tmp_path)
        assert usage.startswith(f"usage: {script} ")
    code = "from on_a_device import load, __version__; print(load.__module__, __version__)"
    printed = run(python, "-S", "-W", "error", "-c", code, env=BARE, cwd=tmp_path)
    assert printed == f"on_a_device.stream {VERSION}\n"


# The locks


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), pairs  # each exact; no address, no option
    # No extras, which `pip -c` refuses: dev.lock is also what the README pins installations with.
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", package) for package, _ in pairs), pairs
    return {canonicalize_name(package): version for package, version in pairs}


def test_the_locks_are_exact_and_without_cuda():
    for name, version in (locked("dev.lock") | locked("demo.lock") | locked("wheel.lock")).items():
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), (name, version)
        assert not name.startswith(("nvidia", "triton", "cuda")), name


def test_the_demo_installs_an_interpreter_and_nothing_else():
    assert locked("demo.lock") == {"ai-edge-litert": locked("dev.lock")["ai-edge-litert"]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_lock_satisfies_each_extra(extra):
    versions = locked("dev.lock")
    for need in map(Requirement, EXTRAS[extra]):
        if need.name != "tsm" and (need.marker is None or need.marker.evaluate()):
            version = versions[canonicalize_name(need.name)]
            assert need.specifier.contains(version), f"{need}, and dev.lock has {version}"

"""What is shipped is whole, starts every way it can be started, and brings nothing heavy along.

pytest tests/test_packaging.py
"""

from __future__ import annotations

import os
import re
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

ROOT = Path(__file__).parent.parent
PACKAGES = ["training", "export", "runtime"]
SOURCES = sorted(
    path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
SCRIPTS = {
    "tsm-train": "training/train.py",
    "tsm-evaluate": "training/evaluate.py",
    "tsm-tasks": "training/tasks.py",
    "tsm-to-tflite": "export/to_tflite.py",
    "tsm-to-onnx": "export/to_onnx.py",
    "tsm-generate": "runtime/generate.py",
    "tsm-bench": "runtime/bench.py",
    "tsm-score": "runtime/score.py",
    "tsm-describe": "runtime/describe.py",
    "tsm-compress": "runtime/compress.py",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
# Nothing of the surroundings that could lend a bare Python the packages that it lacks.
BARE = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: object, **settings) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def dotted(source: Path) -> str:
    return ".".join(("tsm", *source.with_suffix("").parts)).removesuffix(".__init__")


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build leaves build/lib behind, whose stale files enter the next one."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment with the wheel in it and nothing else, not even pip."""
    home = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", home)
    python = home / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", wheel)
    return home / "bin"


def test_the_wheel_holds_every_module_and_artifact_and_nothing_else(wheel):
    artifacts = [
        path.relative_to(ROOT)
        for path in (ROOT / "runtime").iterdir()
        if path.suffix in (".tflite", ".onnx")
    ]
    names = zipfile.ZipFile(wheel).namelist()
    found = {name for name in names if ".dist-info/" not in name}
    # The library, for any Python, since it binds to none; and what another machine makes it from.
    native = [f"runtime/native/{name}" for name in ("libtsm.abi3.so", "tsm.c", "tsm.h")]
    assert found == {f"tsm/{path}" for path in [*SOURCES, *artifacts, *native]}
    assert "-cp39-abi3-" in wheel.name
    assert any(name.endswith("licenses/LICENSE") for name in names)


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


def test_no_file_hides_a_library():
    """`python export/x.py` puts export/ first on sys.path: export/onnx.py would be `onnx`."""
    taken = sys.stdlib_module_names | packages_distributions().keys()
    stems = {path.stem for path in SOURCES if path.stem != "__init__"}
    assert stems & taken == set()


# The runtime


def test_importing_the_runtime_loads_the_standard_library_only():
    """Import-linter cannot tell an import on top of a module from a lazy one; this can."""
    modules = [dotted(path) for path in SOURCES if path.parts[0] == "runtime"]
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
    folder = tmp_path / "on-a-device"
    shutil.copytree(ROOT / "runtime", folder, ignore=shutil.ignore_patterns("*.tflite", "*.onnx"))
    for source in folder.glob("*.py"):
        run(python, "-I", "-S", "-W", "error", "-m", "py_compile", source, env=BARE)
    for script in (Path(path).name for path in SCRIPTS.values() if path.startswith("runtime/")):
        usage = run(python, "-S", "-W", "error", folder / script, "--help", env=BARE)
        assert usage.startswith("usage: ")


# The locks


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), pairs  # each exact; no address, no option
    return {canonicalize_name(package): version for package, version in pairs}


def test_the_locks_are_exact_and_without_cuda():
    for name, version in (locked("dev.lock") | locked("demo.lock")).items():
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

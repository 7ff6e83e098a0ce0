"""The runtime on ARM, emulated by QEMU: the very bits of x86, what a byte costs in instructions,
and the memory that it takes in a small virtual machine.

make test-arm     # sets up .arm/ (setup.sh, once), then: pytest tests/arm/emulated.py

No time is measured here: an emulator's tells nothing about a board's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_native import SPEC, exported

from tsm.export.tolerance import check

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RUNTIME = ROOT / "runtime"
FOLDER = ROOT / ".arm"
TOOLS = FOLDER / "tools"
X86 = FOLDER / "x86"  # a copy of the runtime with probe.py in it, as each architecture has
MODELS = {"int8": RUNTIME / "shakespeare-int8.tflite", "int4": FOLDER / "int4.tflite"}
# As measured; of memory, whose peak differs by image, a little more.
LIMITS = json.loads((HERE / "limits.json").read_text())
SLACK = 1.1  # a compiler's or a Python's next version may cost that much more
CFLAGS = ["-std=gnu99", "-O3", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared"]
LIBRARIES = [str(TOOLS / place / "x86_64-linux-gnu") for place in ("usr/lib", "lib")]
ENVIRONMENT = {
    "PATH": os.pathsep.join([str(TOOLS / "usr/bin"), str(TOOLS / "sbin"), os.defpath]),
    "LD_LIBRARY_PATH": os.pathsep.join(LIBRARIES),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the same instructions on every run
}


@dataclass(frozen=True)
class Build:
    """The runtime in a Debian of some architecture, compiled by its compiler."""

    architecture: str
    compiler: str
    name: str = "tsm"
    flags: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return FOLDER / self.architecture

    @property
    def runtime(self) -> Path:
        return self.root / self.name


@dataclass(frozen=True)
class Machine:
    cpu: str
    build: Build
    simd: int  # the best that the engine should find

    def run(self, script: str, *arguments: object, plugin: str = "", **options) -> bytes:
        """What a script of the runtime prints, under Debian's Python."""
        root = self.build.root
        emulator = "qemu-aarch64" if self.build is ARM64 else "qemu-arm"
        command = [emulator, "-cpu", self.cpu, "-L", root, "-U", "LD_LIBRARY_PATH"]
        command += ["-plugin", plugin] if plugin else []
        command += ["-E", f"PYTHONPATH={FOLDER / 'litert'}", root / "usr/bin/python3.11"]
        return run([*command, self.build.runtime / script, *arguments], **options)

    def __str__(self) -> str:
        return f"{self.cpu} {' '.join(self.build.flags)}".strip()


ARM64 = Build("arm64", "aarch64-linux-gnu-gcc")
ARMHF = Build("armhf", "arm-linux-gnueabihf-gcc")
# All of it compiled for NEON, whose floats have no denormals: they must not be used.
ARMHF_NEON = Build("armhf", "arm-linux-gnueabihf-gcc", "tsm-neon", ("-mfpu=neon",))
A53, A76 = Machine("cortex-a53", ARM64, 1), Machine("cortex-a76", ARM64, 2)
A15 = Machine("cortex-a15", ARMHF, 1)
MACHINES = [
    A53,
    A76,
    A15,
    Machine("cortex-a15,neon=off", ARMHF, 0),
    Machine("cortex-a15", ARMHF_NEON, 1),
]
machines = pytest.mark.parametrize("machine", MACHINES, ids=str)
models = pytest.mark.parametrize("kind", MODELS)


def run(command: list, environment: dict[str, str] = ENVIRONMENT, **options) -> bytes:
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        timeout=300,
        **options,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def here(script: str, *arguments: object, **options) -> bytes:
    """What a script of the runtime prints on this machine."""
    command = [sys.executable, RUNTIME / script, *arguments]
    return run(command, {"PATH": os.defpath}, **options)


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    _copy_runtime(X86, "*.tflite")
    for build in (ARM64, ARMHF, ARMHF_NEON):
        _copy_runtime(build.runtime, "*.so")
        out, source = build.runtime / "native/libtsm.so", RUNTIME / "native/tsm.c"
        command = [build.compiler, f"--sysroot={TOOLS}", *CFLAGS, *build.flags, "-o", out, source]
        run([*command, "-lm", "-pthread"])


def _copy_runtime(folder: Path, *without: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns(*without, "__pycache__", "build", "*.egg-info")
    shutil.copytree(RUNTIME, folder, ignore=ignored)
    shutil.copy(HERE / "probe.py", folder)


@cache
def model(kind: str) -> Path:
    """One of MODELS, or of random weights in rows that no vector divides."""
    if kind in MODELS:
        return MODELS[kind]
    folder = FOLDER / "odd"
    folder.mkdir(exist_ok=True)
    return exported(folder, SPEC, kind.split()[1])


@cache
def bits_of_x86(kind: str) -> dict:
    """What plain C computes here, without one vector instruction by hand."""
    command = [sys.executable, X86 / "probe.py", model(kind), "native"]
    reports = json.loads(run(command, {"PATH": os.defpath}))
    assert reports[0].pop("simd") == 0
    return reports[0]


def logits_of(report: dict) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(report["logits"]), np.float32).reshape(-1, 256)


@machines
@pytest.mark.parametrize("kind", [*MODELS, "odd int8", "odd int4"])
def test_every_kind_of_instructions_gives_the_bits_of_x86(machine, kind):
    reports = json.loads(machine.run("probe.py", model(kind), "native"))
    assert [found.pop("simd") for found in reports] == [min(i, machine.simd) for i in range(3)]
    wanted = bits_of_x86(kind)
    for found in reports:
        assert [name for name in wanted if found[name] != wanted[name]] == []


@machines
@models
def test_a_seed_gives_the_text_of_x86(machine, kind):
    arguments = (MODELS[kind], "--bytes", 60, "--seed", 7, "--top-p", 0.9, "--engine", "native")
    text = machine.run("generate.py", *arguments)
    assert len(text) >= 60 and text == here("generate.py", *arguments)


@pytest.mark.parametrize("machine", [A53, A76, A15], ids=str)
def test_a_state_goes_on_from_machine_to_machine(machine, tmp_path):
    first, second = tmp_path / "first.tsmstate", tmp_path / "second.tsmstate"
    text = here("generate.py", "--seed", 0, "--bytes", 20, "--save-state", first)
    text += machine.run("generate.py", "--bytes", 20, "--load-state", first, "--save-state", second)
    text += here("generate.py", "--bytes", 20, "--load-state", second)
    assert text == here("generate.py", "--seed", 0, "--bytes", 60)


@pytest.mark.parametrize("machine", [A53, A76, A15], ids=str)
def test_the_tools_give_what_they_give_on_x86(machine, tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"But soft! What light through yonder window breaks?\n\xff\x00")
    packed, packed_here = tmp_path / "arm.tsm", tmp_path / "x86.tsm"
    machine.run("compress.py", text, "--out", packed)
    here("compress.py", text, "--out", packed_here)
    assert packed.read_bytes() == packed_here.read_bytes()
    unpacked, unpacked_here = tmp_path / "arm", tmp_path / "x86"
    machine.run("compress.py", "--decompress", packed_here, "--out", unpacked)
    here("compress.py", "--decompress", packed, "--out", unpacked_here)
    assert unpacked.read_bytes() == unpacked_here.read_bytes() == text.read_bytes()

    score = ("score.py", text, "--engine", "native", "--json")
    found, wanted = json.loads(machine.run(*score)), json.loads(here(*score))
    assert found["total_nats"] == pytest.approx(wanted["total_nats"])  # logarithms are libm's
    assert [a["offset"] for a in found["anomalies"]] == [a["offset"] for a in wanted["anomalies"]]
    describe = ("describe.py", MODELS["int8"], "--json")
    found, wanted = json.loads(machine.run(*describe)), json.loads(here(*describe))
    assert "native" in found.pop("engines") and wanted.pop("engines")
    assert found == wanted


@pytest.mark.parametrize("machine", [A53, A76], ids=str)
def test_litert_agrees(machine):
    (found,) = json.loads(machine.run("probe.py", MODELS["int8"], "litert"))
    check("int8 artifact", logits_of(found), logits_of(bits_of_x86("int8")), logits=True)


@pytest.mark.parametrize("machine", [A53, A76], ids=str)
@models
def test_a_byte_costs_no_more_instructions(machine, kind, tmp_path, capsys):
    def instructions(count: int) -> int:
        log = tmp_path / "instructions"
        plugin = f"{FOLDER / 'count.so'},out={log}"
        machine.run("probe.py", MODELS[kind], "feed", count, plugin=plugin)
        return int(log.read_text())

    few, many = 5, 25
    found = (instructions(many) - instructions(few)) // (many - few)
    limit = SLACK * LIMITS["instructions_per_byte"][f"{machine} {kind}"]
    with capsys.disabled():
        print(f"\n{machine}, {kind}: {found:,} instructions per byte")
    assert found <= limit


@pytest.fixture(scope="session")
def disk(installed) -> Path:
    """An image of Debian with Python, the runtime and both models."""
    shutil.copy(MODELS["int4"], ARM64.runtime)
    image = FOLDER / "disk.img"
    image.unlink(missing_ok=True)
    run(["mke2fs", "-q", "-t", "ext4", "-d", ARM64.root, image, "300M"])
    return image


@pytest.mark.parametrize("memory_mib", [512, 64])
def test_a_small_virtual_machine_generates(memory_mib, disk, capsys):
    (kernel,) = (FOLDER / "kernel/boot").glob("vmlinuz-*")
    command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", memory_mib]
    command += ["-nographic", "-no-reboot", "-net", "none", "-L", TOOLS / "usr/share/qemu"]
    command += ["-kernel", kernel, "-initrd", FOLDER / "initrd"]
    command += ["-append", "console=ttyAMA0 quiet panic=-1"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,readonly=on"]
    command += ["-device", "virtio-blk-device,drive=disk"]
    console = run(command, stdin=subprocess.DEVNULL).decode()
    assert "reboot: Power down" in console
    lines = console.replace(
        "\x1b[K", ""
    ).splitlines()  # progress, which is erased, shares the console
    reports = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(reports) == len(MODELS), console
    for report, kind in zip(reports, MODELS, strict=True):
        with capsys.disabled():
            print(f"\n{memory_mib} MiB, {kind}: {report['peak_rss_bytes']:,} bytes at most")
        options = ("--seed", report["seed"], "--bytes", 60)
        assert report["text"] == here("generate.py", MODELS[kind], *options).decode()
        assert report["peak_rss_bytes"] <= SLACK * LIMITS["peak_rss_bytes"][kind]

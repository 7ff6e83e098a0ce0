"""The C library compiles without a warning by GCC, clang 14 and 19 and zig's clang, for every
target; test_c.py links and runs it. Debian's compilers are installed.

make test-apps-wasm
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import ROOT, RUNTIME
from programs import install, output

LIBRARY = RUNTIME / "native/tsm.c"
FLAGS = ["-std=c99", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
TARGETS = [
    "x86_64-linux-gnu",
    "x86_64-linux-musl",
    "x86_64-windows-gnu",
    "x86_64-macos",
    "aarch64-linux-gnu",
    "aarch64-linux-musl",
    "aarch64-macos",
    "aarch64-windows-gnu",
    "arm-linux-gnueabihf",
    "arm-linux-musleabihf",
    "riscv64-linux-musl",
    "wasm32-wasi",
]


@pytest.mark.parametrize("level", ["-O0", "-O3"])
@pytest.mark.parametrize("compiler", ["gcc", "clang-14", "clang-19"])
def test_debian(tmp_path: Path, compiler: str, level: str) -> None:
    install(**{compiler.replace("-", "_"): compiler})
    # GCC notes that passing a vector differs from GCC 4.5, though nothing is passed.
    output(compiler, *FLAGS, "-Wno-psabi", level, "-c", LIBRARY, "-o", tmp_path / "tsm.o")


@pytest.mark.parametrize("target", TARGETS)
def test_zig(tmp_path: Path, target: str) -> None:
    command = [ROOT / "build/zig/bin/python", "-m", "ziglang", "cc", "-target", target, *FLAGS]
    output(*command, "-O2", "-c", LIBRARY, "-o", tmp_path / "tsm.o")

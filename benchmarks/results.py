"""Results as lines of JSON, one a measurement, each with its machine and date: a benchmark that is
stopped goes on with what is missing."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """`found` as it was written: with the machine and the date."""
    found = {**found, "machine": machine(), "date": datetime.date.today().isoformat()}
    with open(path, "a") as file:
        file.write(json.dumps(found) + "\n")
    return found


def machine() -> str:
    """The processor's name, whether it multiplies bf16 by itself, and how many cores are here."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    flags = {flag for flag in ("avx512f", "avx512_bf16", "amx_tile") if f" {flag} " in text}
    name = names[0] if names else platform.processor() or platform.machine()
    return ", ".join([name, *sorted(flags), f"{os.cpu_count()} cores"])

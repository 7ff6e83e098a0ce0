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
    """The processor's name and family, whether it multiplies bf16 by itself, and how many cores are
    here. AMD's Zen 4 is of family 25, Zen 5 of 26."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    pairs = [line.partition(":") for line in text.splitlines()]
    about = {name.strip(): value.strip() for name, _, value in pairs}
    flags = {flag for flag in ("avx512f", "avx512_bf16", "amx_tile") if f" {flag} " in text}
    name = about.get("model name") or platform.processor() or platform.machine()
    family = [f"family {about['cpu family']}"] if "cpu family" in about else []
    return ", ".join([name, *family, *sorted(flags), f"{os.cpu_count()} cores"])

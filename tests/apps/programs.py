"""What tests of apps share: packages that they install, and tests/vectors.json as lines, which a
program without a JSON parser reads.

    sampling bytes prompt stop ...       in; all but `bytes` in hexadecimal, the first as C's struct
    text finish position state logits    out; `finish` is TSM_LENGTH or TSM_STOP
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from zlib import crc32

from commands import ROOT

VECTORS = json.loads((ROOT / "tests/vectors.json").read_text(encoding="utf-8"))["vectors"]
NUMBERS = {
    "temperature": 0.8,
    "typical_p": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@functools.cache
def _update() -> None:
    subprocess.run(["apt-get", "-qq", "update"], check=True)


def install(**packages: str) -> None:
    """Debian's packages, each by a command or path that it brings (underlines for hyphens)."""
    missing = [p for command, p in packages.items() if not shutil.which(command.replace("_", "-"))]
    if missing:
        _update()
        command = ["apt-get", "-qq", "install", "--no-install-recommends", "-y", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(*command: object, **settings) -> subprocess.CompletedProcess:
    settings = {"capture_output": True, "timeout": 600, "check": False, **settings}
    return subprocess.run([str(part) for part in command], **settings)


def output(*command: object, **settings) -> bytes:
    done = run(*command, **settings)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout


def sampling_bytes(settings: dict) -> bytes:
    """A tsm_sampling."""
    numbers = [float(settings.get(name, default)) for name, default in NUMBERS.items()]
    bias = settings.get("logit_bias", {})
    numbers += [float(bias.get(str(byte), 0)) for byte in range(256)]
    rest = int(settings["seed"]), settings.get("top_k", 0), settings.get("penalty_window", 64)
    return struct.pack("<263dQII", *numbers, *rest)


def vector_lines(vectors: list[dict] = VECTORS) -> bytes:
    lines = []
    for vector in vectors:
        # An empty prompt is read as a line feed.
        texts = [text.encode().hex() for text in (vector["prompt"] or "\n", *vector["stops"])]
        sampling = sampling_bytes(vector["settings"]).hex()
        lines.append(" ".join([sampling, str(vector["bytes"]), *texts]))
    return "\n".join(lines).encode() + b"\n"


def assert_vectors(lines: bytes, vectors: list[dict] = VECTORS) -> None:
    """That a program's answers are those of tests/vectors.json."""
    found = [line.split(" ") for line in lines.decode().splitlines()]
    assert len(found) == len(vectors)
    given = ("bytes", "stops", "settings")
    for (text, finish, position, state, logits), vector in zip(found, vectors, strict=True):
        assert {name: value for name, value in vector.items() if name not in given} == {
            "prompt": vector["prompt"],
            "text": bytes.fromhex(text).decode(),
            "finish_reason": {"1": "length", "2": "stop"}[finish],
            "position": int(position),
            "state_bytes": len(state) // 2,
            "state_crc32": f"{crc32(bytes.fromhex(state)):08x}",
            "logits_crc32": f"{crc32(bytes.fromhex(logits)):08x}",
        }


def shell_commands(page: Path) -> list[str]:
    """What the `sh` blocks of a page say, a command a line."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line]

"""Writes seeds: for fuzz_native.c small models that the C engine loads and runs, for
fuzz_interface.c artifacts of such with a state, for fuzz_completion.c edits of a text.

python tests/fuzz/seeds.py native|interface|completion FOLDER
"""

from __future__ import annotations

import math
import random
import struct
import sys
from pathlib import Path

from tiny import METADATA_AT, artifact, state, tiny_artifact

# vocabulary, width, layers, channels, mlp_width, taps, bits, heads, key_width; mixers
SPECS = [
    ((16, 16, 1, 16, 16, 1, 8, 1, 1), [0]),
    ((20, 24, 2, 32, 40, 3, 8, 1, 1), [0, 0]),
    ((16, 16, 1, 32, 24, 4, 4, 2, 3), [1]),
    ((32, 24, 2, 48, 32, 2, 4, 3, 4), [1, 0]),
]


def main() -> int:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    {"native": native, "interface": interface, "completion": completion}[kind](folder)
    return 0


def interface(folder: Path) -> None:
    """Choices, length of the metadata, metadata, state: with text, and without."""
    path = folder / "artifact"
    for bits in (8, 4):
        path.write_bytes(data := tiny_artifact(bits))
        found = artifact.open_artifact(path)
        path.unlink()
        sampling = dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty"), 0.0)
        sampling |= dict.fromkeys(("typical_p", "top_p", "repetition_penalty", "temperature"), 0.9)
        sampling |= {"top_k": 40, "penalty_window": 64, "seed": 7, "logit_bias": {"10": -1.5}}
        sizes = [4 * math.prod(shape) for shape in found.state.values()]
        for position in (0, 30):
            counts = {"position": position, "draws": position // 2, "unread": position // 30}
            header = {"model": found.sha256, **counts, "sampling": sampling, "grammar": None}
            parts = [b"x" * position, b"", *(bytes(n) for n in (1024, *sizes) if position)]
            said = data[METADATA_AT:]
            start = bytes([1, 3, 77]) + struct.pack("<H", len(said))
            (folder / f"{bits}-{position}").write_bytes(start + said + state.pack(header, parts))


def completion(folder: Path) -> None:
    for seed in range(20):
        (folder / str(seed)).write_bytes(random.Random(seed).randbytes(96))


def native(folder: Path) -> None:
    numbers = random.Random(0)
    for index, (sizes, mixers) in enumerate(SPECS):
        vocabulary, width, layers, channels, mlp_width, taps, _, heads, key_width = sizes
        count = 1 + layers * (taps + 1 + 8) + 3 * sum(mixers) + 2
        inner = max(3 * channels, 2 * heads * key_width + 2 * channels)
        most = max(4 * vocabulary * width, inner * width, mlp_width * width)
        floats = (numbers.gauss(0, 1) for _ in range(most // 4 + 64))
        file = b"".join(struct.pack("<f", value) for value in floats)
        for choice in range(6):
            choices = bytes([1, choice, 7 * choice, choice % 4])
            offsets = b"".join(struct.pack("<H", numbers.randrange(32)) for _ in range(count))
            spec = struct.pack("<9I", *sizes) + bytes(mixers).ljust(256, b"\0")
            seed = spec + choices + offsets + file
            (folder / f"{index}-{choice}").write_bytes(seed)


if __name__ == "__main__":
    sys.exit(main())

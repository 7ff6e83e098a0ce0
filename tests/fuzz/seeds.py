"""Writes seeds for fuzz_native.c: small models that the C engine loads and runs, of either kind.

python tests/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

SPECS = [  # vocabulary, width, layers, channels, mlp_width, taps, bits
    (16, 16, 1, 16, 16, 1, 8),
    (20, 24, 2, 32, 40, 3, 8),
    (16, 16, 1, 16, 24, 4, 4),
    (32, 24, 2, 48, 32, 2, 4),
]


def main() -> int:
    folder, numbers = Path(sys.argv[1]), random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for index, spec in enumerate(SPECS):
        vocabulary, width, layers, channels, mlp_width, taps, _ = spec
        count = 1 + layers * (taps + 1 + 8) + 2
        most = max(4 * vocabulary * width, 3 * channels * width, mlp_width * width)
        floats = (numbers.gauss(0, 1) for _ in range(most // 4 + 64))
        file = b"".join(struct.pack("<f", value) for value in floats)
        for choice in range(6):
            choices = bytes([1, choice, 7 * choice, choice % 4])
            places = b"".join(struct.pack("<H", numbers.randrange(32)) for _ in range(count))
            seed = struct.pack("<7I", *spec) + choices + places + file
            (folder / f"{index}-{choice}").write_bytes(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A sealed artifact of a few KB, of random weights, that the C library computes; no .tflite and no
.onnx, which it does not look at.

For tests, and the seeds of make fuzz.
"""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))
import artifact  # noqa: E402  # modules of their own: this runs without the rest of TSM
import state  # noqa: E402, F401

METADATA_AT = 1 << 15  # after the weights and nothing


def tiny_artifact(bits: int = 8, width: int = 16, channels: int = 16, taps: int = 3) -> bytes:
    """Of one layer."""
    numbers, data, offsets = random.Random(bits), bytearray(b"\0" * 16), {}

    def put(name: str, *parts: bytes) -> None:
        offsets[name] = []
        for part in parts:
            offsets[name].append(f"{len(data):012d}")
            data.extend(part + bytes(-len(part) % 16))

    def floats(count: int) -> bytes:
        return struct.pack(f"<{count}f", *(numbers.gauss(0, 1) for _ in range(count)))

    def matrix(name: str, rows: int, columns: int, bits: int = bits) -> None:
        scales = struct.pack(f"<{rows}f", *[0.01] * rows)
        put(name, numbers.randbytes(rows * columns * bits // 8).replace(b"\x80", b"\0"), scales)

    put("embed", floats(256 * width))
    put("blocks.0.mixer.short", *(floats(width) for _ in range(taps)))
    put("blocks.0.mixer.radius", floats(channels))
    matrix("blocks.0.mixer.in", 3 * channels, width)
    matrix("blocks.0.mixer.out", width, channels)
    matrix("blocks.0.mlp.in", 2 * width, width)
    matrix("blocks.0.mlp.out", width, 2 * width)
    matrix("head", 256, width, 8)
    spec = {"mixer": "beam", "rotation": False, "coupling": True, "short": True, "width": width}
    spec |= {"layers": 1, "heads": 1, "value_width": channels, "compression": taps}
    metadata = {
        "spec": spec | {"vocabulary": 256, "mlp_ratio": 2.0},
        "quantization": f"int{bits}",
        "license": "none",
        "source_sha256": "0" * 64,
        "prefill_tokens": 64,
        "state": {"channels": [1, 1, channels], "history": [1, 1, taps - 1, width]},
        "initial_state": "zeros",
        "offsets": offsets,
    }
    data += bytes(max(0, METADATA_AT - len(data)))
    return artifact.seal(bytes(data) + artifact.metadata_json(metadata).encode() + b"\0")

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


def tiny_artifact(bits: int = 8, width: int = 16, channels: int = 32, taps: int = 3) -> bytes:
    """Of two layers, the second an addressed splitter."""
    heads, key_width = channels // 16, 3
    projected = 2 * heads * key_width + channels
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
    put("blocks.1.mixer.short", *(floats(projected) for _ in range(taps)))
    put("blocks.1.mixer.encoder", floats(3 * heads * width))
    for angle in ("delta", "radius", "decay"):
        put(f"blocks.1.mixer.encoder.{angle}", floats(heads))
    matrix("blocks.1.mixer.in", projected + channels, width)
    for block in ("blocks.0", "blocks.1"):
        matrix(f"{block}.mixer.out", width, channels)
        matrix(f"{block}.mlp.in", 2 * width, width)
        matrix(f"{block}.mlp.out", width, 2 * width)
    matrix("head", 256, width, 8)
    spec = {"mixer": "beam,addressed", "rotation": False, "coupling": True, "short": True}
    spec |= {"width": width, "layers": 2, "heads": heads, "key_width": key_width}
    spec |= {"value_width": channels // heads, "compression": taps}
    metadata = {
        "spec": spec | {"vocabulary": 256, "mlp_ratio": 2.0},
        "quantization": f"int{bits}",
        "license": "none",
        "source_sha256": "0" * 64,
        "prefill_tokens": 64,
        "state": {
            "addressed": [1, 1, heads, key_width, channels // heads],
            "channels": [1, 1, channels],
            "history": [1, 1, taps - 1, width],
            "projected": [1, 1, taps - 1, projected],
        },
        "initial_state": "zeros",
        "offsets": offsets,
    }
    data += bytes(max(0, METADATA_AT - len(data)))
    return artifact.seal(bytes(data) + artifact.metadata_json(metadata).encode() + b"\0")
